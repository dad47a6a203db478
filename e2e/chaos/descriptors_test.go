package main

import (
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// The ends of a connection are told from files, until one is closed and the
// other is not.
func TestConnectionsAreToldFromFiles(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	l, other := listen(), listen()
	count := func(server, node net.Listener) open {
		t.Helper()
		o, err := descriptors(os.Getpid(), server.Addr().String(), node.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	before := count(l, other)
	if before.callers != 0 || before.node != 0 {
		t.Fatalf("before the first: %+v", before)
	}
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if got := count(l, other); got != (open{before.files + 1, 1, 0}) {
		t.Fatalf("to whom is called: %+v after %+v", got, before)
	}
	if got := count(other, l); got != (open{before.files + 1, 0, 1}) {
		t.Fatalf("to who calls: %+v after %+v", got, before)
	}
	near.Close()
	want := open{before.files + 1, 0, 0}
	for end := time.Now().Add(5 * time.Second); count(l, other) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("what is not closed is a file: %+v after %+v", count(l, other), before)
		}
	}
}
