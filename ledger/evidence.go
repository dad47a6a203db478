package ledger

import "time"

// Block names a block of a chain.
type Block struct {
	Number int64
	Hash   string // 0x + 64 hex, lower case
}

// Use is an authorization that a block of the canonical chain shows as used
// for a transfer of Amount to PayTo, whoever submitted it.
type Use struct {
	Key
	PayTo  string // lower case
	Amount int64  // atomic units
	Evidence
}

// Cursor is how far a watcher has followed a chain: everything up to Scanned
// is in the book, everything up to Final cannot be undone.
type Cursor struct {
	Scanned   Block
	Final     int64     // number of the newest block that was finalized and is scanned
	FinalTime time.Time // of that block
}
