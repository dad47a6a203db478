package dataset

import (
	"os"
	"syscall"
)

// startFlush lets the kernel begin to write a part of a file to the disk, so
// that Sync finds little left to wait for. It is a hint and may fail.
func startFlush(f *os.File, off, n int64) {
	const syncFileRangeWrite = 2
	_ = syscall.SyncFileRange(int(f.Fd()), off, n, syncFileRangeWrite)
}
