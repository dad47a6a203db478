package dispatch

import (
	"math/rand/v2"
	"sync"
)

// numbers gives numbers to requests and payments, in runs from random starts.
//
// They are keys in the book. If each were random, each would dirty a page of an
// index of its own, which is 4 KB of the database's log for a few bytes: numbers
// that follow each other share it. Two nodes give the same number as rarely as
// if all were random: a run is as likely to meet another one as a number is to
// meet another of a set that is so many times smaller.
type numbers struct {
	mu   sync.Mutex
	next uint64
}

// run is how many numbers follow each other; a power of two.
const run = 1 << 12

func (n *numbers) take() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next%run == 0 {
		n.next = rand.Uint64() &^ (run - 1)
	}
	n.next++
	return n.next - 1
}

// newID is for finding something in a log and in the book. It is no secret, so
// the runtime's ChaCha8 will do.
func (d *Dispatcher) newID(prefix string) string {
	const hex = "0123456789abcdef"
	var b [20]byte
	at := copy(b[:], prefix)
	n := d.numbers.take()
	for i := range 16 {
		b[at+i] = hex[n>>(60-4*i)&15]
	}
	return string(b[:at+16])
}
