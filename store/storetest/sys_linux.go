package storetest

import "syscall"

// dieWithParent has the kernel stop a server whose parent was killed.
func dieWithParent(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: attr.Credential, Pdeathsig: syscall.SIGQUIT}
}
