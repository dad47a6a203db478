package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// vectorCases are the cases that -update asks clawr serve, and writes down.
func vectorCases() map[string]*vectorFile {
	return map[string]*vectorFile{
		"routing":     {About: "which tenant and route a request is, and what is answered without a payment", Cases: routingCases()},
		"payments":    {About: "payments: taken, refused, bound, replayed", Cases: paymentCases()},
		"facilitator": {About: "what facilitators say, and what is said of it: 200 if the chain shows the payment, never 402 while it may be charged", Cases: facilitatorCases()},
		"limits":      {About: "rates, quotas and caps", Cases: limitCases()},
		"records":     {About: "queries of records, with a payment", Cases: recordCases()},
		"platform":    {About: "the platform's own pages", Cases: platformCases()},
	}
}

const listTarget = "/t/people/v1/records"

func step(method, target, pay string, headers ...[2]string) vectorStep {
	return vectorStep{Method: method, Target: target, Pay: pay, Headers: headers}
}

func routingCases() (list []edgeVector) {
	add := func(s vectorStep) {
		list = append(list, edgeVector{Name: strings.TrimSpace(fmt.Sprintf("%s %s%s %v", s.Method, s.Host, s.Target, s.Headers)), Steps: []vectorStep{s}})
	}
	for _, target := range []string{"/t/people/v1/records", "/t/people/v1/records?limit=1", "/t/people/v1/records?nope=1", "/t/people/v1/records?q=%22%3c%3e%5c", "/t/people/v1/records/1", "/t/people/v1/records/77", "/t/people/v1/schema", "/t/people/v1/preview", "/t/people/pricing",
		"/t/people/health", "/t/people/openapi.json", "/t/people", "/t/people/", "/t/people/nothing", "/t/people/v1//records", "/t/people/v1/records/", "/t/people/v1%2frecords", "/t/people/V1/records", "/t/people/v1/records;x", "/t/people/v1/records%0a", "/t/people/v1/records/1;x",
		"/t/people/v1/records/a%2fb", "/t/nobody/v1/records", "/t/People/v1/records", "/t//v1/records", "/t/", "/", "/v1/records", "/health", "/t/paused/v1/records", "/t/paused/v1/schema", "/t/removed/v1/records", "/t/removed/v1/schema",
		"/t/free/v1/records?limit=2", "/t/free/v1/records?nope=1", "/t/free/v1/records/3", "/t/free/v1/records/33", "/t/free/v1/records?format=csv&limit=2", "/t/free/v1/records?format=ndjson&limit=2", "/t/free/v1/schema"} {
		add(step("GET", target, ""))
	}
	for _, method := range []string{"HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		for _, target := range []string{"/t/people/v1/records", "/t/people/v1/schema", "/t/nobody/"} {
			add(step(method, target, ""))
		}
	}
	for _, s := range []vectorStep{{Method: "GET", Target: "/v1/records", Host: "people.api.example.com"}, {Method: "GET", Target: "/v1/records", Host: "PEOPLE.api.example.com."}, {Method: "GET", Target: "/v1/schema", Host: "people.api.example.com:8080"},
		{Method: "GET", Target: "/t/people/v1/records", Host: "people.api.example.com"}, {Method: "GET", Target: "/health", Host: "people.api.example.com"}, {Method: "GET", Target: "/v1/records", Host: "other.api.example.com"}, {Method: "GET", Target: "/", Host: "people.api.example.com"}} {
		add(s)
	}
	add(step("GET", listTarget, "", [2]string{"If-None-Match", "*"}))
	add(step("GET", listTarget, "", [2]string{"If-None-Match", `"0123456789abcdef0123456789abcdef"`}))
	add(step("GET", listTarget, "", [2]string{"Accept", "text/html"}))
	return list
}

func paymentCases() (list []edgeVector) {
	one := func(name string, steps ...vectorStep) { list = append(list, edgeVector{Name: name, Steps: steps}) }
	pay := func(how string) vectorStep { return step("GET", listTarget, how) }
	one("paid, and sent again", pay("fresh"), pay("same"), pay("same"))
	one("paid by version 1, and sent again", pay("v1 fresh"), pay("v1 same"))
	one("paid by HEAD", step("HEAD", listTarget, "fresh"), step("HEAD", listTarget, "same"))
	one("paid by host", vectorStep{Method: "GET", Target: "/v1/records?limit=1", Host: "people.api.example.com", Pay: "fresh"}, vectorStep{Method: "GET", Target: "/v1/records?limit=1", Host: "people.api.example.com", Pay: "same"}, step("GET", listTarget+"?limit=1", "same"))
	one("one record", step("GET", listTarget+"/2", "fresh"), step("GET", listTarget+"/2", "same"), step("GET", listTarget+"/3", "same"))
	one("no such record", step("GET", listTarget+"/77", "fresh"), step("GET", listTarget+"/1", "same"))
	one("another query", step("GET", listTarget+"?limit=2", "fresh"), step("GET", listTarget+"?limit=3", "same"), step("GET", listTarget+"?limit=2&count=none", "same"))
	one("another method", pay("fresh"), step("HEAD", listTarget, "same"), step("POST", listTarget, "same"))
	one("another tenant", pay("fresh:from "+listTarget), step("GET", "/t/rated/v1/records", "same"))
	one("a free route with a payment", step("GET", "/t/people/v1/schema", "fresh:from "+listTarget), pay("same"))
	one("a bad query with a payment", step("GET", listTarget+"?nope=1", "fresh"), pay("same"))
	one("a wrong method with a payment", step("POST", listTarget, "fresh:from "+listTarget))
	one("no tenant with a payment", step("GET", "/t/nobody/v1/records", "fresh:from "+listTarget))
	one("a paused tenant with a payment", step("GET", "/t/paused/v1/records", "fresh:from "+listTarget))
	one("a removed tenant with a payment", step("GET", "/t/removed/v1/records", "fresh:from "+listTarget))
	one("without a quote, and sent again", pay("fresh:no quote"), pay("same"))
	one("what one has already", step("GET", listTarget+"?limit=1", "fresh"), step("GET", listTarget+"?limit=1", "", [2]string{"If-None-Match", "*"}))
	one("an identifier buys once", pay("fresh:an identifier"), pay("same"), pay("fresh:an identifier"))
	one("an identifier is wanted", step("GET", "/t/named/v1/records", "fresh:no extensions"), step("GET", "/t/named/v1/records", "fresh:an identifier"))
	for _, how := range []string{"scheme", "network", "amount", "asset", "payTo", "time", "name", "version", "unknown", "a foreign quote", "a short quote", "a garbled quote", "builder-code", "another echo", "a bad identifier", "to", "too little", "too much", "zero", "too short", "over", "not yet",
		"nonce", "purse", "high s", "no signature"} {
		one("altered: "+how, pay("fresh:"+how))
	}
	one("more in extra", pay("fresh:more"))
	list = append(list, edgeVector{Name: "an empty purse", Funds: new(int64), Steps: []vectorStep{pay("fresh")}})
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, h := range map[string]string{"a word": "garbage", "one bracket": b64("{"), "null": b64("null"), "an array": b64("[]"), "no members": b64("{}"), "url-safe": "eyJ4NDAyVmVyc2lvbiI6Mn0_", "not UTF-8": b64("{\"a\":\"\xff\"}"), "deep": b64(strings.Repeat("[", 5000) + strings.Repeat("]", 5000)),
		"a prototype": b64(`{"__proto__":{"x402Version":2}}`), "a member twice": b64(`{"x402Version":2,"x402Version":2}`), "data behind": b64(`{}{}`), "version 9": b64(`{"x402Version":9}`), "oversize": strings.Repeat("A", 17<<10), "empty": ""} {
		one("header: "+name, step("GET", listTarget, "", [2]string{payHeader, h}))
		one("version 1's header: "+name, step("GET", listTarget, "", [2]string{"X-PAYMENT", h}))
	}
	one("two headers", step("GET", listTarget, "", [2]string{payHeader, "AAAA"}, [2]string{payHeader, "AAAA"}))
	one("two kinds of header", step("GET", listTarget, "", [2]string{payHeader, "AAAA"}, [2]string{"X-PAYMENT", "AAAA"}))
	one("a payment header for nobody", step("GET", "/t/nobody/", "", [2]string{payHeader, "garbage"}))
	return sorted(list)
}

func sorted(list []edgeVector) []edgeVector {
	for i := range list {
		for k := i; k > 0 && list[k].Name < list[k-1].Name; k-- {
			list[k], list[k-1] = list[k-1], list[k]
		}
	}
	return list
}

func facilitatorCases() (list []edgeVector) {
	const success = `{"success":true,"transaction":"%TX%","network":"%NET%"}`
	lie := strings.ReplaceAll(success, "%TX%", strangersTx)
	for _, c := range []struct {
		name string
		vectorDoes
	}{
		{"honest", vectorDoes{"/settle", true, 200, success}}, {"500, but settled", vectorDoes{"/settle", true, 500, "oops"}}, {"garbage, but settled", vectorDoes{"/settle", true, 200, "{"}}, {"false as a string, but settled", vectorDoes{"/settle", true, 200, `{"success":"false","transaction":"","network":"%NET%"}`}},
		{"rejected, but settled", vectorDoes{"/settle", true, 200, `{"success":false,"errorReason":"invalid_exact_evm_signature","transaction":"","network":"%NET%"}`}}, {"reply dropped, but settled", vectorDoes{"/settle", true, hangUp, ""}},
		{"pending with 500, but settled", vectorDoes{"/settle", true, 500, `{"success":false,"errorReason":"settlement_pending","transaction":"%TX%","network":"%NET%"}`}}, {"pending by 202, but settled", vectorDoes{"/settle", true, 202, ""}},
		{"rejected", vectorDoes{"/settle", false, 200, `{"success":false,"errorReason":"invalid_exact_evm_signature","transaction":"","network":"%NET%"}`}}, {"rejected with 400", vectorDoes{"/settle", false, 400, `{"success":false,"errorReason":"invalid_payload","transaction":"","network":""}`}},
		{"lies", vectorDoes{"/settle", false, 200, lie}}, {"another network", vectorDoes{"/settle", false, 200, strings.ReplaceAll(lie, "%NET%", "eip155:1")}}, {"no transaction", vectorDoes{"/settle", false, 200, `{"success":true,"transaction":"","network":"%NET%"}`}},
		{"500", vectorDoes{"/settle", false, 500, "oops"}}, {"nothing", vectorDoes{"/settle", false, 200, ""}}, {"reply dropped", vectorDoes{"/settle", false, hangUp, ""}},
		{"pending for long", vectorDoes{"/settle", false, 200, `{"success":false,"errorReason":"settlement_pending","transaction":"` + strangersTx + `","network":"%NET%"}`}}, {"pending by 202 for long", vectorDoes{"/settle", false, 202, `{"status":"queued"}`}},
		{"verify: no", vectorDoes{"/verify", false, 200, `{"isValid":false,"invalidReason":"invalid_exact_evm_insufficient_balance"}`}}, {"verify: no with 400", vectorDoes{"/verify", false, 400, `{"isValid":false,"invalidReason":"<b>"}`}}, {"verify: no reason", vectorDoes{"/verify", false, 200, `{"isValid":false}`}},
		{"verify: 500", vectorDoes{"/verify", false, 500, "oops"}}, {"verify: garbage", vectorDoes{"/verify", false, 200, "{"}}, {"verify: a string", vectorDoes{"/verify", false, 200, `{"isValid":"true"}`}}, {"verify: another's", vectorDoes{"/verify", false, 200, `{"isValid":true,"payer":"0x0000000000000000000000000000000000000001"}`}},
		{"verify: dropped", vectorDoes{"/verify", false, hangUp, ""}}, {"verify: unauthorized", vectorDoes{"/verify", false, 401, `{"isValid":false}`}}, {"verify: redirects", vectorDoes{"/verify", false, 307, "http://127.0.0.1:9/"}},
	} {
		does := c.vectorDoes
		list = append(list, edgeVector{Name: c.name, Facilitator: &does, Steps: []vectorStep{step("GET", listTarget+"?limit=1", "fresh"), step("GET", listTarget+"?limit=1", "same")}})
	}
	return list
}

func limitCases() []edgeVector {
	many := func(n int, s vectorStep) (list []vectorStep) {
		for range n {
			list = append(list, s)
		}
		return list
	}
	return []edgeVector{
		{Name: "a caller's rate", Steps: many(5, step("GET", "/t/rated/v1/records", ""))},
		{Name: "the rate of all", Steps: many(4, step("GET", "/t/shared/v1/schema", ""))},
		{Name: "a quota of paid calls", Steps: []vectorStep{step("GET", "/t/counted/v1/records?limit=1", "fresh"), step("GET", "/t/counted/v1/records?limit=2", "fresh"), step("GET", "/t/counted/v1/records?limit=3", "fresh"), step("GET", "/t/counted/v1/records?limit=3", "same")}},
		{Name: "a spend cap", Steps: []vectorStep{step("GET", "/t/capped/v1/records?limit=1", "fresh"), step("GET", "/t/capped/v1/records?limit=2", "fresh")}},
		{Name: "a quota of free calls", Steps: many(4, step("GET", "/t/gratis/v1/records?limit=1", ""))},
	}
}

// recordCases are the hand-written queries of testdata/vectors/records.
func recordCases() (list []edgeVector) {
	b, err := os.ReadFile("../testdata/vectors/records/people.json")
	if err != nil {
		panic(err)
	}
	var f struct{ Cases []struct{ Query string } }
	if err := json.Unmarshal(b, &f); err != nil {
		panic(err)
	}
	for _, c := range f.Cases {
		if !strings.Contains(c.Query, "cursor=") || len(c.Query) < 40 { // cursors of another key
			list = append(list, edgeVector{Name: "?" + c.Query, Steps: []vectorStep{step("GET", strings.TrimSuffix(listTarget+"?"+c.Query, "?"), "fresh")}})
		}
	}
	return list
}

func platformCases() (list []edgeVector) {
	for _, c := range [][2]string{{"", ""}, {"Authorization", "Bearer clawr_nobody"}, {"Authorization", "Basic {good}"}, {"Authorization", "Bearer {poor}"}} {
		for _, target := range []string{"/__platform/events", "/__platform/analytics", "/__platform/analytics?window=today"} {
			s := step("GET", target, "")
			if c[0] != "" {
				s.Headers = [][2]string{c}
			}
			list = append(list, edgeVector{Name: fmt.Sprintf("%s %s", target, c[1]), Steps: []vectorStep{s}})
		}
	}
	good := [2]string{"Authorization", "Bearer {good}"}
	for _, target := range []string{"/__platform/analytics?window=year", "/__platform/analytics?top=0", "/__platform/analytics?top=x", "/__platform/events?limit=0", "/__platform/events?limit=2001", "/__platform/events?limit=x", "/__platform/nothing", "/__platform/"} {
		list = append(list, edgeVector{Name: target, Steps: []vectorStep{step("GET", target, "", good)}})
	}
	return append(list, edgeVector{Name: "POST /__platform/events", Steps: []vectorStep{step("POST", "/__platform/events", "", good)}},
		edgeVector{Name: "a tenant's host has the platform's pages", Steps: []vectorStep{{Method: "GET", Target: "/__platform/events", Host: "people.api.example.com"}}})
}
