package dataset

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
)

const people = `id,name,city,born,score,active
1,Ada,London,1815-12-10,9.5,true
2,Grace,New York,1906-12-09,9.5,false
3,Edsger,Rotterdam,1930-05-11,,true
4,Barbara,Los Angeles,1939-11-07,7.25,true
5,Tony,,1934-01-11,8,false
`

func peopleHandler(t testing.TB) *Handler {
	t.Helper()
	return &Handler{Segment: segment(t, "people.csv", people, Options{}), CursorKey: []byte("0123456789abcdef"),
		Facts: Facts{Price: 1000, Paid: true, Network: "eip155:84532", PayTo: "0xabc", Scheme: "exact", Asset: clawr.Asset{Address: "0xdef", Decimals: 6}}}
}

func get(t testing.TB, h http.Handler, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return w
}

// names asks for records and gives the names of the rows, and the next page.
func names(t testing.TB, h *Handler, target string) (list []string, next string) {
	t.Helper()
	w := get(t, h, target)
	var body struct {
		Data []struct{ Name string }
		Meta struct{ Next *string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 200 {
		t.Fatalf("%s: %d %s", target, w.Code, w.Body)
	}
	for _, r := range body.Data {
		list = append(list, r.Name)
	}
	if body.Meta.Next != nil {
		next = *body.Meta.Next
	}
	return list, next
}

func TestRecordsFollowTheGrammar(t *testing.T) {
	h := peopleHandler(t)
	for query, want := range map[string]string{
		"":                                "Ada Grace Edsger Barbara Tony",
		"limit=2":                         "Ada Grace",
		"limit=2&offset=3":                "Barbara Tony",
		"offset=5":                        "",
		"name=Ada":                        "Ada",
		"city=":                           "Tony",
		"city=New+York":                   "Grace",
		"city=New%20York":                 "Grace",
		"id=3":                            "Edsger",
		"id=3.0":                          "Edsger",
		"id=3.5":                          "",
		"id__gt=3.5":                      "Barbara Tony",
		"id__lte=2.5":                     "Ada Grace",
		"score=9.5":                       "Ada Grace",
		"score__ne=9.5":                   "Barbara Tony",
		"score__null=true":                "Edsger",
		"score__null=false":               "Ada Grace Barbara Tony",
		"score__gte=8&score__lt=9.5":      "Tony",
		"active=true&score__gt=8":         "Ada",
		"active__ne=true":                 "Grace Tony",
		"born__lt=1900-01-01":             "Ada",
		"born__gte=1934-01-11":            "Barbara Tony",
		"id__in=1,5,9":                    "Ada Tony",
		"id__nin=1,5,9":                   "Grace Edsger Barbara",
		"name__in=[%22Ada%22,%22Tony%22]": "Ada Tony",
		"name__prefix=E":                  "Edsger",
		"name__contains=ra":               "Grace Barbara",
		"city__contains=o":                "Ada Grace Edsger Barbara",
		"name__gt=Barbara":                "Grace Edsger Tony",
		"q=angeles":                       "Barbara",
		"q=YORK+grace":                    "Grace",
		"q=rot*":                          "Edsger",
		"q=rot":                           "",
		"sort=name":                       "Ada Barbara Edsger Grace Tony",
		"sort=-name&limit=2":              "Tony Grace",
		"sort=score":                      "Edsger Barbara Tony Ada Grace",
		"sort=-score":                     "Grace Ada Tony Barbara Edsger",
		"sort=active,-score":              "Grace Tony Ada Barbara Edsger",
		"sort=-active,name":               "Ada Barbara Edsger Grace Tony",
	} {
		got, _ := names(t, h, "/v1/records?"+query)
		if strings.Join(got, " ") != want {
			t.Errorf("%s gives %v, want %s", query, got, want)
		}
	}
}

func TestAnswersHaveTheShapeOfTheDesign(t *testing.T) {
	h := peopleHandler(t)
	v := h.Segment.Version()
	for target, want := range map[string]string{
		"/v1/records?limit=1&name=Ada&count=exact":      `{"data":[{"id":1,"name":"Ada","city":"London","born":"1815-12-10","score":9.5,"active":true}],"meta":{"version":"` + v + `","limit":1,"count":1,"next":null}}`,
		"/v1/records?name=nobody":                       `{"data":[],"meta":{"version":"` + v + `","limit":100,"next":null}}`,
		"/v1/records?select=active,score,name&id=3":     `{"data":[{"active":true,"score":null,"name":"Edsger"}],"meta":{"version":"` + v + `","limit":100,"next":null}}`,
		"/v1/records/5":                                 `{"data":{"id":5,"name":"Tony","city":"","born":"1934-01-11","score":8,"active":false},"meta":{"version":"` + v + `"}}`,
		"/v1/records/5?select=name":                     `{"data":{"name":"Tony"},"meta":{"version":"` + v + `"}}`,
		"/v1/records?format=ndjson&limit=5&offset=4":    `{"id":5,"name":"Tony","city":"","born":"1934-01-11","score":8,"active":false}` + "\n",
		"/v1/records?format=csv&id__gte=3&limit=5":      "id,name,city,born,score,active\r\n3,Edsger,Rotterdam,1930-05-11,,true\r\n4,Barbara,Los Angeles,1939-11-07,7.25,true\r\n5,Tony,\"\",1934-01-11,8,false\r\n",
		"/v1/records?format=csv&id=1&select=name,score": "name,score\r\nAda,9.5\r\n",
		"/health": `{"ok":true}`,
	} {
		if w := get(t, h, target); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s gives %d %s, want %s", target, w.Code, w.Body, want)
		}
	}
	for _, free := range []string{"/v1/schema", "/v1/preview", "/pricing"} {
		if w := get(t, h, free); w.Code != 200 || !json.Valid(w.Body.Bytes()) || !strings.HasPrefix(w.Header().Get("Cache-Control"), "public") {
			t.Errorf("%s gives %d %s %v", free, w.Code, w.Body, w.Header())
		}
	}
	if w := get(t, h, "/pricing"); !strings.Contains(w.Body.String(), `"priceUsd":"0.001"`) || !strings.Contains(w.Body.String(), `"amount":"1000"`) {
		t.Errorf("pricing is %s", w.Body)
	}
}

func TestBadQueriesNameTheParameterAndTheNearestColumn(t *testing.T) {
	h := peopleHandler(t)
	for query, want := range map[string]struct {
		code       clawr.Code
		param, fix string
	}{
		"nmae=Ada":                            {CodeUnknownParameter, "nmae", "name"},
		"scroe__gt=1":                         {CodeUnknownParameter, "scroe__gt", "score__gt"},
		"limti=5":                             {CodeUnknownParameter, "limti", "limit"},
		"score__between=1":                    {CodeUnknownOperator, "score__between", "gte"},
		"score__eq=1":                         {CodeUnknownOperator, "score__eq", "equality"},
		"name=a&name=b":                       {CodeDuplicateParameter, "name", "name__in"},
		"id=x":                                {CodeInvalidValue, "id", "int"},
		"id=01":                               {CodeInvalidValue, "id", "int"},
		"id=1e999":                            {CodeInvalidValue, "id", "int"},
		"active=yes":                          {CodeInvalidValue, "active", "bool"},
		"active__gt=true":                     {CodeInvalidValue, "active__gt", "active=true"},
		"born=1815":                           {CodeInvalidValue, "born", "date"},
		"born__prefix=18":                     {CodeInvalidValue, "born__prefix", "gte"},
		"name__null=maybe":                    {CodeInvalidValue, "name__null", "true"},
		"name__prefix=":                       {CodeOverLimit, "name__prefix", ""},
		"id__in=1,x":                          {CodeInvalidValue, "id__in", "int"},
		"name__in=[1]":                        {CodeInvalidValue, "name__in", "JSON"},
		"id__in=" + strings.Repeat("1,", 100): {CodeOverLimit, "id__in", ""},
		"limit=0":                             {CodeOverLimit, "limit", "1 to 1000"},
		"limit=1001":                          {CodeOverLimit, "limit", "1 to 1000"},
		"limit=abc":                           {CodeInvalidValue, "limit", "1 to 1000"},
		"limit=":                              {CodeInvalidValue, "limit", ""},
		"limit":                               {CodeInvalidValue, "limit", "limit=value"},
		"offset=-1":                           {CodeOverLimit, "offset", "0 to 5"},
		"offset=6":                            {CodeOverLimit, "offset", "0 to 5"},
		"sort=nme":                            {CodeUnknownColumn, "sort", "name"},
		"sort=name,-name":                     {CodeInvalidValue, "sort", ""},
		"sort=id,name,city,born":              {CodeOverLimit, "sort", ""},
		"select=":                             {CodeUnknownColumn, "select", ""},
		"select=id,id":                        {CodeInvalidValue, "select", ""},
		"q=!!":                                {CodeInvalidValue, "q", "letter"},
		"q=a+b+c+d+e+f+g+h+i":                 {CodeOverLimit, "q", ""},
		"q=" + strings.Repeat("x", 257):       {CodeOverLimit, "q", ""},
		"count=all":                           {CodeInvalidValue, "count", "exact"},
		"format=xml":                          {CodeInvalidValue, "format", "json"},
		"version=1":                           {CodeInvalidValue, "version", "meta.version"},
		"version=0123456789abcdef":            {clawr.CodeVersionGone, "version", "without"},
		"cursor=abc":                          {CodeInvalidCursor, "cursor", "meta.next"},
		"name=%ff":                            {CodeInvalidValue, "name", ""},
		"name=%zz":                            {CodeInvalidValue, "name", ""},
		"name=a%00b":                          {CodeInvalidValue, "name", ""},
		"name=" + strings.Repeat("x", 8200):   {CodeQueryTooLong, "", ""},
	} {
		canonical, units, err := h.Plan(httptest.NewRequest("GET", "/v1/records?"+query, nil))
		e, ok := err.(*clawr.Error)
		if !ok || e.Code != want.code || e.Param != want.param || !strings.Contains(e.Fix, want.fix) || e.Fix == "" {
			t.Errorf("%.60s is refused with %#v, want %+v", query, err, want)
			continue
		}
		if units != 1 || canonical != "/v1/records" {
			t.Errorf("%.60s is planned as %q, %d units", query, canonical, units)
		}
		if status := e.HTTPStatus(); status != 400 && (status != 410 || e.Code != clawr.CodeVersionGone) {
			t.Errorf("%.60s has status %d", query, status)
		}
	}
}

func TestOnlyExactPathsLeadAnywhere(t *testing.T) {
	h := peopleHandler(t)
	for _, path := range []string{"/", "/v1", "/v1/", "/v1/records/", "/V1/records", "/v1/Records", "/v1//records", "//v1/records", "/v1/./records", "/v1/x/../records",
		"/v1/records;x=1", "/v1%2frecords", "/v1/records%2f", "/v1/record%73", "/%761/records", "/v1/records/1/", "/v1/records/1/2", "/v1/records/..", "/v1/records/.",
		"/v1/records/%2e%2e", "/v1/records/1;x", "/v1/schema/", "/v1/schema/../records", "/health/../v1/records", "/v1/preview/x"} {
		r := httptest.NewRequest("GET", "/", nil)
		u, err := r.URL.Parse(path)
		if err != nil {
			t.Fatal(err)
		}
		// As net/http has it: the path is not cleaned.
		raw, err := http.NewRequest("GET", "http://x"+path, nil)
		if err != nil {
			t.Fatal(u, err)
		}
		_, units, err := h.Plan(raw)
		if clawr.CodeOf(err) != clawr.CodeNotFound || units != 0 {
			t.Errorf("%s is planned with %d units and %v", path, units, err)
		}
		if w := httptest.NewRecorder(); true {
			h.ServeHTTP(w, raw)
			if w.Code != 404 || strings.Contains(w.Body.String(), "Ada") {
				t.Errorf("%s is answered %d %s", path, w.Code, w.Body)
			}
		}
	}
	for _, m := range []string{"POST", "PUT", "DELETE", "get", "OPTIONS", "BREW"} {
		if _, units, err := h.Plan(httptest.NewRequest(m, "/v1/records", nil)); clawr.CodeOf(err) != clawr.CodeMethodNotAllowed || units != 0 {
			t.Errorf("%s is planned with %d units and %v", m, units, err)
		}
	}
}

func TestPlanIsOneForOneQuestion(t *testing.T) {
	h := peopleHandler(t)
	for _, same := range [][]string{
		{"/v1/records", "/v1/records?limit=100", "/v1/records?count=none&offset=0", "/v1/records?format=json", "/v1/records?&", "/v1/records?version=" + h.Segment.Version()},
		{"/v1/records?city=New+York&limit=5", "/v1/records?limit=5&city=New%20York", "/v1/records?l%69mit=5&city=%4eew+York"},
		{"/v1/records?id__in=3,1,2,1", "/v1/records?id__in=1,2,3", "/v1/records?id__in=[3,2.0,1e0]"},
		{"/v1/records?score=9.50", "/v1/records?score=9.5", "/v1/records?score=95e-1"},
		{"/v1/records?q=Grace+YORK", "/v1/records?q=grace,york"},
		{"/v1/records?name=Ada&id=1", "/v1/records?id=1&name=Ada"},
		{"/v1/records/1", "/v1/records/%31"},
	} {
		first := ""
		for _, target := range same {
			for _, method := range []string{"GET", "HEAD"} {
				c, units, err := h.Plan(httptest.NewRequest(method, target, nil))
				if err != nil || units != 1 {
					t.Errorf("%s: %d units, %v", target, units, err)
				}
				if first == "" {
					first = c
				}
				if c != first {
					t.Errorf("%s is planned as %s and %s as %s", target, c, same[0], first)
				}
			}
		}
		again, _, err := h.Plan(httptest.NewRequest("GET", first, nil))
		if err != nil || again != first {
			t.Errorf("the canonical %s is planned as %s, %v", first, again, err)
		}
	}
	seen := map[string]string{}
	for _, target := range []string{"/v1/records", "/v1/records?limit=5", "/v1/records?offset=5", "/v1/records?name=Ada", "/v1/records?name__ne=Ada", "/v1/records?q=ada",
		"/v1/records?q=ada*", "/v1/records?sort=id", "/v1/records?sort=-id", "/v1/records?select=id", "/v1/records?count=exact", "/v1/records?format=csv", "/v1/records/1", "/v1/records/2", "/v1/records/1?select=id"} {
		c, _, err := h.Plan(httptest.NewRequest("GET", target, nil))
		if err != nil {
			t.Fatal(err)
		}
		if was, ok := seen[h.ETag(c)]; ok {
			t.Errorf("%s and %s have one ETag", was, target)
		}
		seen[h.ETag(c)] = target
	}
}

func TestAnswerGivesTheBytesThatServeWrote(t *testing.T) {
	h := peopleHandler(t)
	for _, target := range []string{"/v1/records", "/v1/records?limit=2&sort=-name", "/v1/records?q=ada&count=exact", "/v1/records/3?select=name", "/v1/records?format=csv&limit=1",
		"/v1/schema", "/v1/preview", "/pricing", "/health", "/v1/records?city=New+York%20&name__in=a,b"} {
		c, _, err := h.Plan(httptest.NewRequest("GET", target, nil))
		if err != nil {
			t.Fatal(err)
		}
		served := get(t, h, target).Body.String()
		if again, err := h.Answer(context.Background(), c); err != nil || string(again) != served {
			t.Errorf("%s was %s and is now %s, %v", target, served, again, err)
		}
	}
}

func TestRecordsThatDoNotExistAreFoundOutBeforeTheyArePaid(t *testing.T) {
	h := peopleHandler(t)
	for target, want := range map[string]clawr.Code{"/v1/records/1": "", "/v1/records/99": clawr.CodeRecordNotFound, "/v1/records/x": clawr.CodeRecordNotFound,
		"/v1/records": "", "/v1/records/1?limit=5": CodeUnknownParameter} {
		err := h.Check(context.Background(), httptest.NewRequest("GET", target, nil))
		if got := clawr.CodeOf(err); err == nil && want != "" || err != nil && got != want {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
	rows := &Handler{Segment: segment(t, "x.csv", "name\nAda\nGrace\n", Options{})}
	if got := get(t, rows, "/v1/records/2").Body.String(); !strings.Contains(got, "Grace") {
		t.Errorf("row 2 is %s", got)
	}
	if w := get(t, rows, "/v1/records/0"); w.Code != 404 {
		t.Errorf("row 0 is %d", w.Code)
	}
	text := &Handler{Segment: segment(t, "x.csv", "name\na/b\né ü\n", Options{Key: "name"})}
	for target, want := range map[string]string{"/v1/records/a%2Fb": "a/b", "/v1/records/%C3%A9%20%C3%BC": "é ü"} {
		if got := get(t, text, target).Body.String(); !strings.Contains(got, want) {
			t.Errorf("%s is %s", target, got)
		}
	}
}

func TestPagesByCursorHaveEveryRowOnce(t *testing.T) {
	h := peopleHandler(t)
	for _, sort := range []string{"", "&sort=name", "&sort=-score", "&sort=active,-score", "&sort=-active,born", "&score__null=false&sort=score"} {
		all, _ := names(t, h, "/v1/records?limit=100"+sort)
		for _, limit := range []string{"1", "2", "3"} {
			var got []string
			for next := "/v1/records?limit=" + limit + sort; next != ""; {
				var page []string
				page, next = names(t, h, next)
				got = append(got, page...)
			}
			if strings.Join(got, " ") != strings.Join(all, " ") {
				t.Errorf("pages of %s with %q give %v, want %v", limit, sort, got, all)
			}
		}
	}
	_, next := names(t, h, "/v1/records?limit=1&sort=name&active=true")
	for what, target := range map[string]string{"another sort": strings.Replace(next, "sort=name", "sort=born", 1), "another filter": strings.Replace(next, "active=true", "active=false", 1),
		"a changed byte": next[:len(next)-3] + "A" + next[len(next)-2:], "an offset": next + "&offset=1"} {
		if _, _, err := h.Plan(httptest.NewRequest("GET", target, nil)); clawr.CodeOf(err) != CodeInvalidCursor {
			t.Errorf("a cursor with %s gives %v", what, err)
		}
	}
	other := *h
	other.CursorKey = []byte("another key")
	if _, _, err := other.Plan(httptest.NewRequest("GET", next, nil)); clawr.CodeOf(err) != CodeInvalidCursor {
		t.Errorf("a cursor of another key gives %v", err)
	}
}

func TestCursorsPinTheirVersion(t *testing.T) {
	old := peopleHandler(t)
	fresh := *old
	fresh.Segment = segment(t, "people.csv", people+"6,Alan,London,1912-06-23,9,true\n", Options{})
	_, next := names(t, old, "/v1/records?limit=3")
	if w := get(t, &fresh, next); w.Code != 410 {
		t.Errorf("a cursor of a version that is gone gives %d %s", w.Code, w.Body)
	}
	released := 0
	fresh.Versions = func(v string) (*Segment, func(), error) {
		if v != old.Segment.Version() {
			t.Errorf("version %s is asked for", v)
		}
		return old.Segment, func() { released++ }, nil
	}
	if got, end := names(t, &fresh, next); strings.Join(got, " ") != "Barbara Tony" || end != "" {
		t.Errorf("the second page of the old version is %v, then %q", got, end)
	}
	if got, _ := names(t, &fresh, "/v1/records?version="+old.Segment.Version()); len(got) != 5 {
		t.Errorf("the pinned version has %v", got)
	}
	if got, _ := names(t, &fresh, "/v1/records"); len(got) != 6 {
		t.Errorf("the current version has %v", got)
	}
	if released != 2 {
		t.Errorf("old segments were let go of %d times, want 2", released)
	}
}

func TestAQueryBeyondItsCPUTimeIsStopped(t *testing.T) {
	var b strings.Builder
	b.WriteString("n,t\n")
	for i := range 60_000 {
		b.WriteString(strings.Repeat("x", i%7) + "1,word another thing " + string(rune('a'+i%26)) + "\n")
	}
	h := &Handler{Segment: segment(t, "x.csv", b.String(), Options{}), CPU: 20 * time.Microsecond}
	w := get(t, h, "/v1/records?n__contains=zzz&t__contains=q&count=exact&sort=-n,t")
	if w.Code != 429 || !strings.Contains(w.Body.String(), string(clawr.CodeCPULimit)) || strings.Contains(w.Body.String(), `"data"`) {
		t.Errorf("a query beyond 20 µs is answered %d %.200s", w.Code, w.Body)
	}
	h.CPU = 5 * time.Second
	if w := get(t, h, "/v1/records?n__contains=zzz&t__contains=q&count=exact&sort=-n,t"); w.Code != 200 {
		t.Errorf("the same query within 5 s is answered %d %s", w.Code, w.Body)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Serve(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/records?sort=n", nil).WithContext(ctx)); err == nil {
		t.Error("a query whose caller hung up is answered")
	}
}
