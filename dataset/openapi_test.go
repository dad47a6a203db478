package dataset

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// Every parameter and operator that the document promises must be taken.
func TestOpenAPIPromisesOnlyWhatIsTaken(t *testing.T) {
	h := peopleHandler(t)
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Parameters []struct {
				Name, In, Description string
				Schema                struct{ Type, Format string }
			}
			Payment map[string]any `json:"x-payment-info"`
		}
	}
	if err := json.Unmarshal(get(t, h, "/openapi.json").Body.Bytes(), &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatal(err, doc.OpenAPI)
	}
	values := map[string]string{"limit": "5", "offset": "1", "sort": "name", "select": "name", "q": "ada", "count": "exact", "format": "csv", "version": h.Segment.Version()}
	list := doc.Paths["/v1/records"]["get"]
	if list.Payment == nil || len(list.Parameters) != 9+6 {
		t.Errorf("the list has payment info %v and %d parameters", list.Payment, len(list.Parameters))
	}
	ask := func(name, value string) {
		if _, _, err := h.Plan(httptest.NewRequest("GET", "/v1/records?"+name+"="+value, nil)); err != nil {
			t.Errorf("%s=%s is promised and refused: %v", name, value, err)
		}
	}
	for _, p := range list.Parameters {
		value, control := values[p.Name]
		switch {
		case p.Name == "cursor":
			continue
		case control:
		case p.Schema.Format == "date":
			value = "2000-01-01"
		case p.Schema.Type == "boolean":
			value = "true"
		default:
			value = "1"
		}
		ask(p.Name, value)
		if _, ops, ok := strings.Cut(p.Description, "also "); ok {
			for op := range strings.SplitSeq(ops, ", ") {
				if strings.HasSuffix(op, "__null") {
					ask(op, "true")
				} else {
					ask(op, value)
				}
			}
		}
	}
	for path := range doc.Paths {
		if w := get(t, h, strings.Replace(path, "{key}", "1", 1)); w.Code != 200 {
			t.Errorf("%s is described and answers %d", path, w.Code)
		}
	}
}

func TestDiscoveryFitsAHeader(t *testing.T) {
	wide := "id"
	row := "1"
	for i := range 97 {
		wide += fmt.Sprintf(",a rather long name of a column %d", i)
		row += ",some text"
	}
	for _, text := range []string{people, wide + "\n" + row + "\n", "a\n" + strings.Repeat("x", 9000) + "\n"} {
		h := &Handler{Segment: segment(t, "x.csv", text, Options{})}
		_, b, err := h.Discovery()
		if n := base64.StdEncoding.EncodedLen(len(b)); err != nil || !json.Valid(b) || n > 2500 {
			t.Errorf("%.20s has %d bytes of discovery, %v", text, n, err)
		}
	}
}
