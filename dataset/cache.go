package dataset

import (
	"container/list"
	"errors"
	"io/fs"
	"os"
	"sync"
)

// Cache keeps segments open, the ones used last, and closes the others once
// nobody reads them. A file is verified when this process opens it for the
// first time, and again if its size or time has changed since.
type Cache struct {
	Dir string
	Max int // segments that stay open; 0 = 4096, well below vm.max_map_count
	// Fetch, if set, brings the file of an id to path, where it is missing. It is
	// called once for all who wait for it.
	Fetch func(id, path string) error

	mu       sync.Mutex
	open     map[string]*cached
	used     *list.List // of *cached, the one used last in front
	verified map[string]stamp
}

type cached struct {
	id    string
	seg   *Segment
	err   error
	ready chan struct{} // closed when seg or err is there
	refs  int
	place *list.Element // nil: no longer in the cache, closed by the last Release
}

// stamp tells a file from a later one of the same name.
type stamp struct{ size, time int64 }

// Acquire opens a segment by its id, or gives the open one. Each Acquire without
// error needs its Release.
func (c *Cache) Acquire(id string) (*Segment, error) {
	c.mu.Lock()
	if c.open == nil {
		c.open, c.verified, c.used = map[string]*cached{}, map[string]stamp{}, list.New()
	}
	e := c.open[id]
	if e == nil {
		e = &cached{id: id, ready: make(chan struct{}), refs: 1}
		c.open[id] = e
		e.place = c.used.PushFront(e)
		shut := c.evict()
		c.mu.Unlock()
		closeAll(shut)
		e.seg, e.err = c.load(id)
		if e.err == nil {
			e.seg.entry = e
		}
		close(e.ready)
	} else {
		e.refs++
		if e.place != c.used.Front() {
			c.used.MoveToFront(e.place)
		}
		c.mu.Unlock()
		<-e.ready
	}
	if e.err != nil {
		c.drop(e)
		return nil, e.err
	}
	return e.seg, nil
}

// load opens a file, verified unless it is one that was.
func (c *Cache) load(id string) (*Segment, error) {
	path := Path(c.Dir, id)
	var now stamp
	st, err := os.Stat(path)
	if c.Fetch != nil && errors.Is(err, fs.ErrNotExist) {
		if err := c.Fetch(id, path); err != nil {
			return nil, err
		}
		st, err = os.Stat(path)
	}
	if err == nil {
		now = stamp{st.Size(), st.ModTime().UnixNano()}
	}
	c.mu.Lock()
	known := c.verified[id] == now && now != stamp{}
	c.mu.Unlock()
	s, err := openSegment(path, !known)
	if err == nil {
		c.mu.Lock()
		c.verified[id] = now
		c.mu.Unlock()
	}
	return s, err
}

// Release lets go of a segment that Acquire gave.
func (c *Cache) Release(s *Segment) {
	c.mu.Lock()
	e := s.entry
	e.refs--
	last := e.refs == 0 && e.place == nil
	c.mu.Unlock()
	if last {
		_ = e.seg.Close()
	}
}

// evict takes the segments beyond Max out of the cache; the ones that nobody
// reads are to be closed by the caller, outside the lock.
func (c *Cache) evict() (shut []*Segment) {
	limit := c.Max
	if limit <= 0 {
		limit = 4096
	}
	for c.used.Len() > limit {
		e := c.used.Back().Value.(*cached)
		c.remove(e)
		if e.refs == 0 && e.seg != nil {
			shut = append(shut, e.seg)
		}
	}
	return shut
}

func (c *Cache) remove(e *cached) {
	c.used.Remove(e.place)
	e.place = nil
	if c.open[e.id] == e {
		delete(c.open, e.id)
	}
}

// drop forgets a segment that could not be opened.
func (c *Cache) drop(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.place != nil {
		c.remove(e)
	}
}

// Forget closes a segment as soon as nobody reads it, for instance before its
// file is removed.
func (c *Cache) Forget(id string) {
	c.mu.Lock()
	var shut []*Segment
	if e := c.open[id]; e != nil {
		c.remove(e)
		if e.refs == 0 {
			shut = append(shut, e.seg)
		}
	}
	delete(c.verified, id)
	c.mu.Unlock()
	closeAll(shut)
}

// Close closes what is open; segments in use are closed by their Release.
func (c *Cache) Close() {
	c.mu.Lock()
	var shut []*Segment
	for _, e := range c.open {
		c.remove(e)
		if e.refs == 0 {
			shut = append(shut, e.seg)
		}
	}
	c.mu.Unlock()
	closeAll(shut)
}

func closeAll(segs []*Segment) {
	for _, s := range segs {
		_ = s.Close()
	}
}
