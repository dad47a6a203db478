//go:build !linux

package store

// vfsName is empty for SQLite's default: syncing is done its way.
const vfsName = ""

func registerVFS() error { return nil }
