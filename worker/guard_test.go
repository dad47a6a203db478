package worker

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
)

// privateAddresses are addresses of every kind that is not the public
// Internet's, among them IPv4 in the clothes of IPv6.
func privateAddresses() []string {
	v4 := []string{"0.0.0.0", "0.1.2.3", "10.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.0.0.2", "127.255.255.255",
		"169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.20.10.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1",
		"192.168.0.1", "192.168.1.1", "192.168.255.255", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1",
		"250.1.2.3", "255.255.255.255", "100.100.100.200", "192.31.196.1", "192.175.48.1"}
	v6 := []string{"::", "::1", "::2", "fe80::1", "fe80::1%eth0", "febf::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fdff::1", "ff02::1", "ff05::2", "2001::1", "2001:0:1::1",
		"2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1", "fec0::1", "100::1", "64:ff9b:1::1", "5f00::1", "4000::1", "8000::1", "e000::1", "2001:1ff::1"}
	all := append([]string(nil), v4...)
	all = append(all, v6...)
	for _, a := range v4 {
		b := netip.MustParseAddr(a).As4()
		hi, lo := binary.BigEndian.Uint16(b[:2]), binary.BigEndian.Uint16(b[2:])
		all = append(all, "::ffff:"+a, fmt.Sprintf("::%x:%x", hi, lo), fmt.Sprintf("64:ff9b::%x:%x", hi, lo), fmt.Sprintf("2002:%x:%x::1", hi, lo), fmt.Sprintf("::ffff:0:%x:%x", hi, lo))
	}
	return all
}

func TestNoPrivateAddressIsDialled(t *testing.T) {
	all := privateAddresses()
	if len(all) < 200 {
		t.Fatalf("only %d addresses", len(all))
	}
	client := (&Guard{}).Client()
	for _, a := range all {
		host := a
		if strings.Contains(a, ":") {
			host = "[" + strings.ReplaceAll(a, "%", "%25") + "]"
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		r, err := http.NewRequestWithContext(ctx, "GET", "http://"+host+":80/latest/meta-data/", nil)
		if err != nil {
			t.Fatal(a, err)
		}
		resp, err := client.Do(r)
		cancel()
		if err == nil {
			_ = resp.Body.Close()
		}
		if clawr.CodeOf(err) != CodeAddressNotPublic {
			t.Errorf("%s: %v", a, err)
		}
	}
	for _, a := range []string{"1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1", "198.20.0.1", "2606:4700::1111", "2a00:1450:4001::8a", "2003::1"} {
		if !Public(netip.MustParseAddr(a)) {
			t.Errorf("%s is called private", a)
		}
	}
}

// victim is a server on the loopback address that nobody may reach.
func victim(t *testing.T) (url string, hits *atomic.Int64) {
	t.Helper()
	hits = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = io.WriteString(w, "a\n1\n")
	}))
	t.Cleanup(s.Close)
	return s.URL, hits
}

func TestSpellingsOfLoopbackDoNotEscape(t *testing.T) {
	target, hits := victim(t)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(target, "http://"))
	t.Setenv("HTTP_PROXY", target)
	t.Setenv("http_proxy", target)
	for _, host := range []string{"localhost", "LOCALHOST", "127.1", "127.0.1", "0", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.1.", "[::1]", "[::ffff:7f00:1]",
		"[0:0:0:0:0:ffff:127.0.0.1]", "①②⑦.⓪.⓪.①", "127。0。0。1", "localhost.", "ip6-localhost", "%31%32%37.0.0.1"} {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		body, _, err := (&Guard{}).Fetch(ctx, "http://"+host+":"+port+"/x.csv")
		cancel()
		if err == nil {
			_ = body.Close()
			t.Errorf("%s is fetched", host)
		}
	}
	for _, u := range []string{"file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/", "http://", "//127.0.0.1/", "http://user:pass@127.0.0.1/", "http://[::1", "unix:///x", "data:text/csv,a", "http:///x"} {
		if _, _, err := (&Guard{}).Fetch(context.Background(), u); clawr.CodeOf(err) != CodeBadURL {
			t.Errorf("%s: %v", u, err)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("the private server was reached %d times", n)
	}
}

func TestRedirectsAreGuardedToo(t *testing.T) {
	target, hits := victim(t)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(target, "http://"))
	hop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	}))
	defer hop.Close()
	// Only the first server may be reached: it is on another loopback address.
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = http.Serve(l, hop.Config.Handler) }()
	defer l.Close()
	g := &Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}}
	for to, want := range map[string]clawr.Code{target: CodeAddressNotPublic, "http://[::1]:" + port: CodeAddressNotPublic, "http://169.254.169.254/": CodeAddressNotPublic,
		"file:///etc/passwd": CodeBadURL, "http://u:p@" + l.Addr().String(): CodeBadURL, "http://" + l.Addr().String() + "/?to=/": CodeBadURL} {
		if _, _, err := g.Fetch(context.Background(), "http://"+l.Addr().String()+"/?to="+to); clawr.CodeOf(err) != want {
			t.Errorf("a redirect to %s gives %v", to, err)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("the private server was reached %d times", n)
	}
}

// nameServer answers each question for an IPv4 address with the next of its
// addresses, as a rebinding attacker's does.
func nameServer(t *testing.T, answers ...string) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf, asked := make([]byte, 512), 0
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			q := buf[:n]
			end := 12
			for end < n && q[end] != 0 {
				end += int(q[end]) + 1
			}
			end += 5
			out := append([]byte(nil), q[:2]...)
			out = append(out, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
			out = append(out, q[12:end]...)
			if q[end-3] == 1 { // A
				out[7] = 1
				ip := netip.MustParseAddr(answers[min(asked, len(answers)-1)]).As4()
				asked++
				out = append(append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4), ip[:]...)
			}
			_, _ = c.WriteTo(out, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

func TestRebindingIsFoundWhenDialling(t *testing.T) {
	target, hits := victim(t)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(target, "http://"))
	for _, answers := range [][]string{{"127.0.0.1"}, {"192.0.2.1", "127.0.0.1"}, {"10.0.0.1", "127.0.0.1", "0.0.0.0"}} {
		g := &Guard{Resolver: nameServer(t, answers...)}
		for range len(answers) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			_, _, err := g.Fetch(ctx, "http://rebind.example:"+port+"/x.csv")
			cancel()
			if clawr.CodeOf(err) != CodeAddressNotPublic {
				t.Errorf("names that resolve to %v give %v", answers, err)
			}
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("the private server was reached %d times", n)
	}
}

func TestFetchGivesTheFileAndItsName(t *testing.T) {
	target, _ := victim(t)
	g := &Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	body, name, err := g.Fetch(context.Background(), target+"/data/prices.csv?x=1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err != nil || string(b) != "a\n1\n" || name != "prices.csv" || body.Close() != nil {
		t.Errorf("fetched %q as %s, %v", b, name, err)
	}
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	if _, _, err := g.Fetch(context.Background(), missing.URL); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("a 404 gives %v", err)
	}
}
