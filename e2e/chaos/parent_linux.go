package main

import "syscall"

// dieWithParent keeps a program from outliving the one that kills it.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
