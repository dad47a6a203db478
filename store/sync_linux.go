package store

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// vfsName is the VFS that databases are opened with: SQLite's own, but that a
// file is synced by fdatasync, as SQLite does where it is compiled with
// HAVE_FDATASYNC (https://sqlite.org/compile.html). The driver's calls fsync,
// which writes the time of the last change too: a transaction of the file
// system's journal for each commit, on a log that most commits only write over.
const vfsName = "clawr-fdatasync"

// What SQLite reads is in its own kind of memory, as long as the process lasts.
var (
	unixVFS  uintptr // sqlite3_vfs that ours is a copy of
	tablesMu sync.Mutex
	tables   []uintptr // *methodTable

	fdatasync = unix.Fdatasync
)

// methodTable is a copy of what SQLite does with a file, but for our xSync. It
// has one for databases, which are locked, and one for logs.
type methodTable struct {
	sqlite3.Tsqlite3_io_methods
	unix uintptr // of what it is a copy
}

type (
	openFunc = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32
	syncFunc = func(tls *libc.TLS, file uintptr, flags int32) int32
)

// registerVFS makes vfsName known to SQLite.
var registerVFS = sync.OnceValue(func() error {
	tls := libc.NewTLS()
	defer tls.Close()
	unixVFS = sqlite3.Xsqlite3_vfs_find(tls, 0)
	if unixVFS == 0 {
		return errors.New("SQLite has no VFS")
	}
	name, err := libc.CString(vfsName)
	if err != nil {
		return err
	}
	ours, err := allocate[sqlite3.Tsqlite3_vfs](tls)
	if err != nil {
		return err
	}
	vfs := at[sqlite3.Tsqlite3_vfs](ours)
	*vfs = *at[sqlite3.Tsqlite3_vfs](unixVFS)
	vfs.FpNext, vfs.FzName = 0, name
	*function[openFunc](&vfs.FxOpen) = openFile
	if rc := sqlite3.Xsqlite3_vfs_register(tls, ours, 0); rc != sqlite3.SQLITE_OK {
		return fmt.Errorf("register the VFS: SQLite's error %d", rc)
	}
	return nil
})

// openFile is xOpen.
func openFile(tls *libc.TLS, _, name, file uintptr, flags int32, outFlags uintptr) int32 {
	rc := (*function[openFunc](&at[sqlite3.Tsqlite3_vfs](unixVFS).FxOpen))(tls, unixVFS, name, file, flags, outFlags)
	f := at[sqlite3.Tsqlite3_file](file)
	if rc != sqlite3.SQLITE_OK || f.FpMethods == 0 {
		return rc
	}
	ours, err := tableOf(tls, f.FpMethods)
	if err != nil {
		return rc // it is synced SQLite's way
	}
	f.FpMethods = ours
	return rc
}

// tableOf is our table in place of unix.
func tableOf(tls *libc.TLS, unix uintptr) (uintptr, error) {
	tablesMu.Lock()
	defer tablesMu.Unlock()
	for _, t := range tables {
		if at[methodTable](t).unix == unix {
			return t, nil
		}
	}
	p, err := allocate[methodTable](tls)
	if err != nil {
		return 0, err
	}
	t := at[methodTable](p)
	t.Tsqlite3_io_methods, t.unix = *at[sqlite3.Tsqlite3_io_methods](unix), unix
	*function[syncFunc](&t.FxSync) = syncFile
	tables = append(tables, p)
	return p, nil
}

// syncFile is xSync. While the directory of a new file is to be synced as well,
// it is SQLite's.
func syncFile(tls *libc.TLS, file uintptr, flags int32) int32 {
	f := at[sqlite3.TunixFile](file)
	if f.FctrlFlags&sqlite3.UNIXFILE_DIRSYNC != 0 {
		return (*function[syncFunc](&at[sqlite3.Tsqlite3_io_methods](at[methodTable](f.FpMethod).unix).FxSync))(tls, file, flags)
	}
	for {
		switch err := fdatasync(int(f.Fh)); err {
		case nil:
			return sqlite3.SQLITE_OK
		case unix.EINTR: // nothing was synced yet
		default:
			if errno, ok := errors.AsType[unix.Errno](err); ok {
				f.FlastErrno = int32(errno)
			}
			return sqlite3.SQLITE_IOERR_FSYNC
		}
	}
}

// allocate gives the address of a T that SQLite may keep: one in Go's memory it
// could not follow under the race detector's checks of pointers.
func allocate[T any](tls *libc.TLS) (uintptr, error) {
	var t T
	p := libc.Xcalloc(tls, 1, libc.Tsize_t(unsafe.Sizeof(t)))
	if p == 0 {
		return 0, errors.New("SQLite has no memory left")
	}
	return p, nil
}

// at is what SQLite has at an address of its own memory, which the garbage
// collector does not move.
func at[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// function is where SQLite keeps a function that Go calls and gives: a pointer
// to the function's value, which for one that closes over nothing is constant.
func function[F any](p *uintptr) *F { return (*F)(unsafe.Pointer(p)) }
