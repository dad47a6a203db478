package store

import (
	"context"
	"sync"
	"time"
)

// Watch calls changed once at first, and then within a second of every change
// of the directory, whoever makes it, until ctx ends; then it returns ctx's
// error. Changes that come together may be told together. Because of the first
// call, nothing that happens between two calls of anything is missed.
func (db *DB) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	woken := make(chan struct{}, 1)
	wg.Go(func() {
		db.listen(ctx, directoryChannel, func(string) {
			select {
			case woken <- struct{}{}:
			default: // told already
			}
		})
	})
	tick := time.NewTicker(db.poll())
	defer tick.Stop()
	last := int64(-1)
	for {
		revision, err := db.Revision(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			db.log.WarnContext(ctx, "the directory's revision cannot be read", "err", err)
		case revision != last:
			last = revision
			changed()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-woken:
		case <-tick.C:
		}
	}
}
