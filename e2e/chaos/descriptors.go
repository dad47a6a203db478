package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// open is what a process has open.
type open struct {
	files   int // that are none of the following; a connection that its other end has closed is one
	callers int // connections that are held to its port: how many is theirs to say
	node    int // connections that it keeps to the node, in a pool of as many as a burst needed
}

// descriptors counts what a process has open, of which the callers' connections
// go to listen, and the node's to node: host:port each.
func descriptors(pid int, listen, node string) (o open, err error) {
	local, err := portOf(listen)
	if err != nil {
		return o, err
	}
	remote, err := portOf(node)
	if err != nil {
		return o, err
	}
	dir := fmt.Sprintf("/proc/%d", pid)
	pools := map[string]*int{}
	for _, name := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(filepath.Join(dir, "net", name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return o, err
		}
		for line := range strings.Lines(string(b)) {
			// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …
			f := strings.Fields(line)
			switch {
			case len(f) < 10 || f[3] != "01": // not established
			case strings.HasSuffix(f[1], local):
				pools["socket:["+f[9]+"]"] = &o.callers
			case strings.HasSuffix(f[2], remote):
				pools["socket:["+f[9]+"]"] = &o.node
			}
		}
	}
	list, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return o, err
	}
	for _, e := range list {
		to, err := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		switch pool := pools[to]; {
		case errors.Is(err, fs.ErrNotExist): // closed meanwhile
		case err != nil:
			return o, err
		case pool != nil:
			*pool++
		default:
			o.files++
		}
	}
	return o, nil
}

// portOf is how /proc/net/tcp ends an address with the port of host:port.
func portOf(addr string) (string, error) {
	_, s, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	port, err := strconv.ParseUint(s, 10, 16)
	return fmt.Sprintf(":%04X", port), err
}
