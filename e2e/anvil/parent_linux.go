package anvil

import "syscall"

// dieWithParent keeps the node from outliving a test that is killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
