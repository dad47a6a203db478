package main

import "syscall"

// dieWithParent keeps a program under test from outliving a benchmark that is
// killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
