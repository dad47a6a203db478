package usage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

func parse(t testing.TB, text string) ([]Event, Parsed) {
	t.Helper()
	var got []Event
	p, err := Parse(strings.NewReader(text), func(e Event) error { got = append(got, e); return nil })
	if err != nil {
		t.Fatalf("%.200s: %v", text, err)
	}
	return got, p
}

func TestAliasesAndDefaults(t *testing.T) {
	at := time.Date(2026, 2, 13, 10, 0, 0, 0, time.UTC)
	full := Event{Time: at, RequestID: "r1", API: "gold", Endpoint: "/v1/records", Owner: "@codex", Directory: "Finance", Caller: "agent-7",
		Status: 200, Latency: 12345 * time.Microsecond, Price: 1000, Billed: 2000, Billable: true, Countable: true}
	bare := Event{Time: at, RequestID: "r1", API: "gold", Endpoint: "/gold", Owner: "@unknown", Directory: "Uncategorized", Caller: "anonymous", Status: 200, Countable: true}
	with := func(change func(*Event)) Event { e := bare; change(&e); return e }
	for _, c := range []struct {
		name, json string
		want       Event
	}{
		{"our own names", `{"timestamp":1770976800000,"requestId":"r1","apiId":"gold","endpoint":"/v1/records","owner":"@codex","directory":"Finance","callerId":"agent-7","status":200,"latencyMs":12.345,"priceUsd":0.001,"billedUsd":0.002}`, full},
		{"first aliases", `{"ts":"2026-02-13T10:00:00Z","requestId":"r1","api":"gold","path":"/v1/records","publisher":"@codex","category":"Finance","agentId":"agent-7","statusCode":"200","durationMs":"12.345","unitPriceUsd":"0.001","revenueUsd":"$0.002"}`, full},
		{"other aliases", `{"occurredAt":"2026-02-13T12:00:00+02:00","requestId":"r1","api":"gold","route":"/v1/records","creator":"@codex","category":"Finance","wallet":"agent-7","unitPriceUsd":1e-3,"amountUsd":2.0E-3,"durationMs":12.3449}`, full},
		{"defaults", `{"timestamp":1770976800000,"requestId":"r1","apiId":"gold"}`, bare},
		{"nulls are absent", `{"timestamp":null,"ts":1770976800000,"requestId":"r1","apiId":null,"api":"gold","owner":null,"status":null,"latencyMs":null,"priceUsd":null}`, bare},
		{"the api falls back to the endpoint", `{"ts":1770976800000,"requestId":"r1","endpoint":"/x"}`, with(func(e *Event) { e.API, e.Endpoint = "/x", "/x" })},
		{"the api falls back to the path", `{"ts":1770976800000,"requestId":"r1","path":"/x"}`, with(func(e *Event) { e.API, e.Endpoint = "/x", "/x" })},
		{"billed falls back to the price", `{"ts":1770976800000,"requestId":"r1","api":"gold","priceUsd":0.5}`, with(func(e *Event) { e.Price, e.Billed, e.Billable = 500_000, 500_000, true })},
		{"billed 0 is no fallback", `{"ts":1770976800000,"requestId":"r1","api":"gold","priceUsd":0.5,"billedUsd":0}`, with(func(e *Event) { e.Price = 500_000 })},
		{"a negative amount is none", `{"ts":1770976800000,"requestId":"r1","api":"gold","priceUsd":0.5,"billedUsd":-3}`, with(func(e *Event) { e.Price, e.Billed, e.Billable = 500_000, 500_000, true })},
		{"a challenge is not countable", `{"ts":1770976800000,"requestId":"r1","api":"gold","status":402}`, with(func(e *Event) { e.Status, e.Countable = 402, false })},
		{"unless it says so", `{"ts":1770976800000,"requestId":"r1","api":"gold","status":402,"countable":true}`, with(func(e *Event) { e.Status = 402 })},
		{"countable may be refused", `{"ts":1770976800000,"requestId":"r1","api":"gold","countable":false}`, with(func(e *Event) { e.Countable = false })},
		{"an explicit error", `{"ts":1770976800000,"requestId":"r1","api":"gold","error":true}`, with(func(e *Event) { e.Error = "error" })},
		{"a named error", `{"ts":1770976800000,"requestId":"r1","api":"gold","error":"upstream_down"}`, with(func(e *Event) { e.Error = "upstream_down" })},
		{"an error code", `{"ts":1770976800000,"requestId":"r1","api":"gold","error":false,"errorCode":"E42"}`, with(func(e *Event) { e.Error = "E42" })},
		{"control characters go", `{"ts":1770976800000,"requestId":"r1","api":"go\u0000ld\u001b\u202e","owner":"  "}`, bare},
		{"names are matched exactly", `{"ts":1770976800000,"requestId":"r1","api":"gold","OWNER":"x","Status":500}`, bare},
		{"milliseconds are floored", `{"ts":1770976800000.9,"requestId":"r1","api":"gold"}`, bare},
		{"a time without a zone is UTC", `{"ts":"2026-02-13T10:00:00.0009","requestId":"r1","api":"gold"}`, bare},
	} {
		got, p := parse(t, c.json)
		if len(got) != 1 || got[0] != c.want || p != (Parsed{Events: 1}) {
			t.Errorf("%s:\n got %+v %+v\nwant %+v", c.name, got, p, c.want)
		}
	}
}

func TestTimes(t *testing.T) {
	for in, want := range map[string]string{
		`0`: "1970-01-01T00:00:00Z", `-1`: "1969-12-31T23:59:59.999Z", `1770976800123`: "2026-02-13T10:00:00.123Z",
		`"2026-02-13"`: "2026-02-13T00:00:00Z", `"2026-02-13T10:00Z"`: "2026-02-13T10:00:00Z",
		`"2026-02-13T10:00:00.123456+05:30"`: "2026-02-13T04:30:00.123Z", `"2026-02-13T10:00:00-0330"`: "2026-02-13T13:30:00Z",
		`"yesterday"`: "", `"1770976800123"`: "", `true`: "", `{}`: "", `1e300`: "", `"2026-02-30"`: "", `253402300800000`: "", `""`: "",
	} {
		at, ok := instant(json.RawMessage(in))
		got := ""
		if ok {
			got = at.Format(time.RFC3339Nano)
		}
		if got != want {
			t.Errorf("%s is read as %q, want %q", in, got, want)
		}
	}
}

func TestMoneyIsExact(t *testing.T) {
	for in, want := range map[string]clawr.Amount{
		"0": 0, "0.001": 1000, "0.000001": 1, "0.0000005": 1, "0.0000004999999": 0, "5": 5_000_000, "$1.25": 1_250_000, "1e-3": 1000,
		"1.5E+3": 1_500_000_000, "0.29": 290_000, "1.005": 1_005_000, "4.35": 4_350_000, "123456789.123456": 123456789123456, ".5": 500_000, "5.": 5_000_000,
		"1e-900": 0, "0e900": 0, "999999999999.999999": 999_999_999_999_999_999, "000000000000000000000000.25": 250_000,
	} {
		if got, ok := micros(in); !ok || got != want {
			t.Errorf("%s is %d µUSD (%v), want %d", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "-1", "x", "1e", "1e99", "1e99999999999", "1.2.3", "1,5", "0x10", "NaN", "Infinity", "1000000000000", "--1", "$"} {
		if got, ok := micros(in); ok {
			t.Errorf("%q is read as %d µUSD, want a refusal", in, got)
		}
	}
}

func TestWhatIsDropped(t *testing.T) {
	got, p := parse(t, `[{"api":"a"},{"ts":1,"owner":"x"},{"ts":"soon","api":"a"},7,null,"x",[],{"ts":1,"api":"a","requestId":"1"},
		{"ts":2,"api":"a","requestId":"1","status":500},{"ts":2,"api":"b","requestId":"1"},{"ts":3,"api":"a"},{"ts":3,"api":"a"}]`)
	if p != (Parsed{Events: 4, Dropped: 7, Duplicates: 1}) {
		t.Errorf("parsed %+v", p)
	}
	if got[0].Status != 200 || got[1].API != "b" || got[2].RequestID == got[3].RequestID {
		t.Errorf("the first of each (api, request id) counts, and those without an id all do: %+v", got)
	}
}

func TestNDJSONAndArraysMeanTheSame(t *testing.T) {
	lines := []string{`{"ts":1,"api":"a"}`, `{"ts":2,"api":"b","requestId":"x"}`, `{"ts":1,"api":"a"}`}
	a, _ := parse(t, "\ufeff\n "+strings.Join(lines, "\r\n\r\n")+"\n")
	b, _ := parse(t, " [ "+strings.Join(lines, " ,\n")+" ] \n")
	again, _ := parse(t, strings.Join(lines, "\n"))
	if len(a) != 3 || !reflect.DeepEqual(a, b) || !reflect.DeepEqual(a, again) {
		t.Errorf("lines:\n%+v\narray:\n%+v\nagain:\n%+v", a, b, again)
	}
	if none, p := parse(t, " \n"); len(none) != 0 || p != (Parsed{}) {
		t.Errorf("nothing gives %v %v", none, p)
	}
}

func TestBadFilesSayWhere(t *testing.T) {
	for in, want := range map[string]string{
		"{\"ts\":1,\"api\":\"a\"}\n\n{oops}\n":     "event line 3 is not JSON",
		"ts,api\n1,a\n":                            "event line 1 is not JSON",
		`[{"ts":1,"api":"a"},{oops}]`:              "element 2 of the array is not JSON",
		`[{"ts":1,"api":"a"}`:                      "element 2 of the array is not JSON, or the array does not end",
		`[{"ts":1,"api":"a"}] x`:                   "something follows the array",
		`[]{}`:                                     "something follows the array",
		`{"x":"` + strings.Repeat("a", maxLine+10): "longer than 1 MB",
	} {
		_, err := Parse(strings.NewReader(in), func(Event) error { return nil })
		if clawr.CodeOf(err) != CodeBadEvents || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", in, err, want)
		}
	}
	stop := errors.New("stop")
	for _, text := range []string{`{"ts":1,"api":"a"}` + "\n" + `{"ts":2,"a`, `[{"ts":1,"api":"a"},{"ts`} {
		cut := io.MultiReader(strings.NewReader(text), iotest.ErrReader(stop))
		if _, err := Parse(cut, func(Event) error { return nil }); !errors.Is(err, stop) {
			t.Errorf("a reader's error in the middle of %s comes back as %v", text, err)
		}
	}
	if _, err := Parse(strings.NewReader(`{"ts":1,"api":"a"}`), func(Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the consumer's error comes back as %v", err)
	}
}

func events() *rapid.Generator[Event] {
	word := rapid.StringMatching(`[a-z]{1,3}`)
	return rapid.Custom(func(t *rapid.T) Event {
		e := Event{
			Time:      time.UnixMilli(rapid.Int64Range(1_700_000_000_000, 1_700_900_000_000).Draw(t, "time")).UTC(),
			RequestID: fmt.Sprint("req_", rapid.Uint64().Draw(t, "id")),
			TenantID:  "tnt_1", API: word.Draw(t, "api"), Owner: "@" + word.Draw(t, "owner"), Directory: word.Draw(t, "directory"), Caller: word.Draw(t, "caller"),
			Status:  rapid.SampledFrom([]int{200, 200, 200, 404, 408, 429, 500, 503}).Draw(t, "status"),
			Latency: time.Duration(rapid.Int64Range(0, 3_000_000).Draw(t, "latency")) * time.Microsecond,
			Price:   clawr.Amount(rapid.Int64Range(0, 20_000).Draw(t, "price")), Lifecycle: Success,
			Units: 1, BytesOut: 10, Countable: rapid.IntRange(0, 9).Draw(t, "countable") > 0, Error: rapid.SampledFrom([]string{"", "", "bad"}).Draw(t, "error"),
		}
		e.Endpoint = "/" + word.Draw(t, "endpoint")
		if e.Billable = rapid.Bool().Draw(t, "billable"); e.Billable {
			e.Billed = e.Price
		}
		return e
	})
}

// What clawr writes, clawr reads back unchanged.
func TestEventsSurviveJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events().Draw(t, "event")
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var got Event
		if err := json.Unmarshal(b, &got); err != nil || got != e {
			t.Fatalf("%s\n got %+v\nwant %+v (%v)", b, got, e, err)
		}
	})
}

func TestAnEventOfNobodySurvivesJSON(t *testing.T) {
	e := Event{Time: time.UnixMilli(1).UTC(), RequestID: "req_1", Owner: "@unknown", Directory: "Uncategorized", Caller: "c", Status: 404, Lifecycle: Invalid, Error: "tenant_not_found"}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var got Event
	if err := json.Unmarshal(b, &got); err != nil || got != e {
		t.Errorf("%s is read as %+v, %v", b, got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"ts":1,"api":"a"}`)
	f.Add("[{\"timestamp\":\"2026-02-13\",\"path\":\"/x\",\"priceUsd\":\"1e-3\",\"durationMs\":1e9},\n null ]")
	f.Add(`{"ts":1e15,"api":"\ud800","billedUsd":99999999999999999999,"status":-1.5}`)
	f.Add("\ufeff[]")
	f.Fuzz(func(t *testing.T, text string) {
		_, err := Parse(strings.NewReader(text), func(e Event) error {
			for _, s := range []string{e.API, e.Endpoint, e.RequestID, e.Owner, e.Directory, e.Caller} {
				if s == "" || !utf8.ValidString(s) || len(s) > 600 || strings.ContainsFunc(s, unicode.IsControl) {
					t.Errorf("text %q of %+v", s, e)
				}
			}
			if e.Latency < 0 || e.Billed < 0 || e.Price < 0 || e.Time.Year() < 0 || e.Time.Year() > 9999 {
				t.Errorf("out of range: %+v", e)
			}
			b, err := json.Marshal(e)
			if err != nil {
				t.Errorf("it does not go back to JSON: %v", err)
			}
			var again Event
			if err := json.Unmarshal(b, &again); err != nil || again != e {
				t.Errorf("%s is read as %+v, was %+v (%v)", b, again, e, err)
			}
			return nil
		})
		if err != nil && clawr.CodeOf(err) != CodeBadEvents {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	line := `{"ts":1770000000000,"requestId":"r1","api":"api7","callerId":"c77","priceUsd":0.001,"latencyMs":123.4567,"status":200}` + "\n"
	text := strings.Repeat(line, 1000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(strings.NewReader(text), func(Event) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
