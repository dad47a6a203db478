package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/402claw/clawr/dataset"
)

// serve answers from a segment, and the same answers as constants under /c, until
// stdin ends.
func serve(dir, id string) error {
	s, err := dataset.Open(dataset.Path(dir, id))
	if err != nil {
		return err
	}
	h := &dataset.Handler{Segment: s, CursorKey: []byte("bench")}
	var constants sync.Map
	mux := http.NewServeMux()
	mux.HandleFunc("/cpu", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, int64(cpu(syscall.RUSAGE_SELF)))
	})
	mux.HandleFunc("/fix", func(_ http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		target := r.URL.Query().Get("of")
		u, _ := url.Parse(target)
		h.ServeHTTP(rec, &http.Request{Method: "GET", URL: u, RequestURI: target, Header: http.Header{}})
		constants.Store("/c"+target, rec)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/"):
			h.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/c/"):
			if c, ok := constants.Load(r.RequestURI); ok {
				rec := c.(*httptest.ResponseRecorder)
				head := w.Header()
				for k, v := range rec.Header() {
					head[k] = v
				}
				_, _ = w.Write(rec.Body.Bytes())
			}
		default:
			mux.ServeHTTP(w, r)
		}
	}))
}

func cpu(who int) time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// server is a process that answers shapes.
type server struct {
	name    string
	addr    string
	seconds float64           // that it took to store the records
	paths   map[string]string // of each shape
	cmd     *exec.Cmd
	in      io.WriteCloser
}

func self(args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// startServer serves a segment in a process of its own.
func startServer(name, dir, id string) (*server, error) {
	cmd, err := self("-serve", id, "-dir", dir)
	if err != nil {
		return nil, err
	}
	return serveWith(name, cmd)
}

// serveWith starts a process that prints the address it serves on, and the
// seconds it needed before.
func serveWith(name string, cmd *exec.Cmd) (*server, error) {
	s := &server{name: name, cmd: cmd, paths: map[string]string{}}
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, dieWithParent()
	var err error
	if s.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("%s ended early: %w", name, err)
	}
	_, _ = fmt.Sscan(line, &s.addr, &s.seconds)
	return s, nil
}

func (s *server) stop() {
	_ = s.in.Close()
	_ = s.cmd.Wait()
}

func (s *server) get(path string) (string, error) {
	r, err := http.Get("http://" + s.addr + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != 200 {
		err = fmt.Errorf("%s: %s %s", path, r.Status, b)
	}
	return string(b), err
}

// shapeNames are the queries of the design's table.
var shapeNames = []string{"l1", "l100", "eq_high", "eq_low", "range_sort", "q", "offset", "keyset", "count_eq", "count_range"}

// shapes gives the paths of clawr's server, and makes constants of their answers.
func (s *server) shapes(rows int) error {
	page, err := s.get("/v1/records?sort=price&limit=20&price__gte=300")
	if err != nil {
		return err
	}
	_, next, _ := strings.Cut(page, `"next":"`)
	s.paths = map[string]string{
		"l1": "/v1/records?limit=1", "l100": "/v1/records?limit=100",
		"eq_high": "/v1/records?brand=brand%201234&limit=20", "eq_low": "/v1/records?country=DE&limit=20",
		"range_sort": "/v1/records?price__gte=100&price__lt=500&sort=-price&limit=20", "q": "/v1/records?q=cobalt+lamp&limit=20",
		"offset": fmt.Sprintf("/v1/records?offset=%d&limit=20", rows/2), "keyset": strings.TrimSuffix(strings.TrimSpace(next), `"}}`),
		"count_eq": "/v1/records?country=FR&count=exact&limit=1", "count_range": "/v1/records?price__gte=200&price__lt=400&count=exact&limit=1",
	}
	for _, target := range s.paths {
		body, err := s.get(target)
		if err != nil {
			return err
		}
		if _, err := s.get("/fix?of=" + url.QueryEscape(target)); err != nil {
			return err
		}
		if same, err := s.get("/c" + target); err != nil || same != body {
			return fmt.Errorf("%s: the constant differs: %v", target, err)
		}
	}
	return nil
}

// constant is the same process asked for the same answers as constants.
func (s *server) constant() *server {
	c := &server{name: "constant", addr: s.addr, paths: map[string]string{}}
	for name, path := range s.paths {
		c.paths[name] = "/c" + path
	}
	return c
}

// rates are requests per second of a shape, of each server in turn, round after
// round.
type rates struct {
	shape string
	of    map[string][]float64 // by server
}

// median is that of a server's rates.
func (r *rates) median(server string) float64 { return median(slices.Clone(r.of[server])) }

// ratio is the median of the rounds' ratios of two servers.
func (r *rates) ratio(a, b string) float64 {
	var all []float64
	for i := range r.of[a] {
		all = append(all, r.of[a][i]/r.of[b][i])
	}
	return median(all)
}

// compare asks all servers for all shapes.
func compare(servers []*server, rounds int, each time.Duration) ([]rates, error) {
	var out []rates
	for _, shape := range shapeNames {
		r := rates{shape, map[string][]float64{}}
		for round := range rounds {
			for i := range servers {
				s := servers[i]
				if round%2 == 1 { // the other way round
					s = servers[len(servers)-1-i]
				}
				one, err := s.rate(s.paths[shape], each)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
				r.of[s.name] = append(r.of[s.name], one)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// rate asks for a path on a few connections and gives the requests per second
// of the server's CPU time.
func (s *server) rate(path string, each time.Duration) (float64, error) {
	var before, after, n int64
	if t, err := s.get("/cpu"); err != nil {
		return 0, err
	} else if _, err := fmt.Sscan(t, &before); err != nil {
		return 0, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	end := time.Now().Add(each)
	for range 4 {
		wg.Go(func() {
			k, err := s.hammer(path, end)
			mu.Lock()
			defer mu.Unlock()
			n += k
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return 0, failed
	}
	t, err := s.get("/cpu")
	if err == nil {
		_, err = fmt.Sscan(t, &after)
	}
	return float64(n) / time.Duration(after-before).Seconds(), err
}

// hammer sends one request after the other; as all answers have one length, it
// need not parse them.
func (s *server) hammer(path string, end time.Time) (n int64, err error) {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: bench\r\n\r\n")
	in := bufio.NewReaderSize(c, 1<<20)
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	size := 0
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		return 0, fmt.Errorf("%s: %s %v", path, resp.Status, err)
	}
	if resp.ContentLength < 0 { // chunked: count it once by hand
		return hammerChunked(c, in, request, end)
	}
	dump := &strings.Builder{}
	_ = resp.Header.Write(dump)
	size = len("HTTP/1.1 200 OK\r\n") + dump.Len() + len("\r\n") + len(body)
	if resp.Header.Get("Content-Length") == "" {
		size += len("Content-Length: \r\n") + len(fmt.Sprint(len(body)))
	}
	for n = 1; time.Now().Before(end); n++ {
		if _, err := c.Write(request); err != nil {
			return n, err
		}
		if _, err := in.Discard(size); err != nil {
			return n, err
		}
	}
	return n, nil
}

// hammerChunked goes on where answers say their length in pieces.
func hammerChunked(c net.Conn, in *bufio.Reader, request []byte, end time.Time) (n int64, err error) {
	for n = 1; time.Now().Before(end); n++ {
		if _, err := c.Write(request); err != nil {
			return n, err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return n, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return n, err
		}
	}
	return n, nil
}
