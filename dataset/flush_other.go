//go:build !linux

package dataset

import "os"

func startFlush(*os.File, int64, int64) {}
