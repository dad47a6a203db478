//go:build !unix

package dataset

import (
	"errors"
	"io"
	"os"
)

var errNoSpace = errors.New("no space")

// mapFile reads the file into memory where it cannot be mapped.
func mapFile(f *os.File, size int) ([]byte, error) {
	b := make([]byte, size)
	_, err := io.ReadFull(f, b)
	return b, err
}

func unmapFile([]byte) error { return nil }
