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

type server struct {
	addr string
	cmd  *exec.Cmd
	in   io.WriteCloser
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

func startServer(dir, id string) (*server, error) {
	cmd, err := self("-serve", id, "-dir", dir)
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	return &server{strings.TrimSpace(addr), cmd, in}, err
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

type ratio struct {
	name                  string
	bytes                 int
	constant, ours, ratio float64
}

// shapes are the queries of the design's table.
func shapes(s *server, rows int) ([][2]string, error) {
	page, err := s.get("/v1/records?sort=price&limit=20&price__gte=300")
	if err != nil {
		return nil, err
	}
	_, next, _ := strings.Cut(page, `"next":"`)
	return [][2]string{
		{"l1", "/v1/records?limit=1"}, {"l100", "/v1/records?limit=100"},
		{"eq_high", "/v1/records?brand=brand%201234&limit=20"}, {"eq_low", "/v1/records?country=DE&limit=20"},
		{"range_sort", "/v1/records?price__gte=100&price__lt=500&sort=-price&limit=20"}, {"q", "/v1/records?q=cobalt+lamp&limit=20"},
		{"offset", fmt.Sprintf("/v1/records?offset=%d&limit=20", rows/2)}, {"keyset", strings.TrimSuffix(strings.TrimSpace(next), `"}}`)},
		{"count_eq", "/v1/records?country=FR&count=exact&limit=1"}, {"count_range", "/v1/records?price__gte=200&price__lt=400&count=exact&limit=1"},
	}, nil
}

func measureServe(s *server, rows, rounds int, each time.Duration) ([]ratio, error) {
	list, err := shapes(s, rows)
	if err != nil {
		return nil, err
	}
	var out []ratio
	for _, shape := range list {
		name, target := shape[0], shape[1]
		body, err := s.get(target)
		if err != nil {
			return nil, err
		}
		if _, err := s.get("/fix?of=" + url.QueryEscape(target)); err != nil {
			return nil, err
		}
		if same, err := s.get("/c" + target); err != nil || same != body {
			return nil, fmt.Errorf("%s: the constant differs: %v", target, err)
		}
		r := ratio{name: name, bytes: len(body)}
		var cs, os, rs []float64
		for range rounds {
			c, err := s.rate("/c"+target, each)
			if err != nil {
				return nil, err
			}
			o, err := s.rate(target, each)
			if err != nil {
				return nil, err
			}
			cs, os, rs = append(cs, c), append(os, o), append(rs, o/c)
		}
		r.constant, r.ours, r.ratio = median(cs), median(os), median(rs)
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
		return s.hammerChunked(c, in, request, end, len(body))
	}
	dump := &strings.Builder{}
	_ = resp.Header.Write(dump)
	size = len("HTTP/1.1 200 OK\r\n") + dump.Len() + len("\r\n") + len(body)
	if resp.Header.Get("Content-Length") == "" {
		size += len("Content-Length: \r\n") + len(fmt.Sprint(len(body)))
	}
	for ; time.Now().Before(end); n++ {
		if _, err := c.Write(request); err != nil {
			return n, err
		}
		if _, err := in.Discard(size); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *server) hammerChunked(c net.Conn, in *bufio.Reader, request []byte, end time.Time, _ int) (n int64, err error) {
	for ; time.Now().Before(end); n++ {
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
