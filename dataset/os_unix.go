//go:build unix

package dataset

import (
	"os"
	"syscall"
)

const errNoSpace = syscall.ENOSPC

// mapFile maps a file read-only; unmap ends it.
func mapFile(f *os.File, size int) ([]byte, error) {
	return syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
}

func unmapFile(b []byte) error { return syscall.Munmap(b) }
