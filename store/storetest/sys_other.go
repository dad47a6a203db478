//go:build !linux

package storetest

import "syscall"

// dieWithParent can only be had on Linux; elsewhere a killed test leaves its
// server behind.
func dieWithParent(attr *syscall.SysProcAttr) *syscall.SysProcAttr { return attr }
