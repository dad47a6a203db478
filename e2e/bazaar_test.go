package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// A catalog that reads challenges with the official extension finds how a
// dataset is asked, and with an example, in a header that proxies let through.
func TestOfficialCatalogReadsTheChallenge(t *testing.T) {
	c := devChain(t)
	s := serve(t, c)
	for tenant, file := range map[string]string{"airports": airports, "movies": "../dataset/testdata/movies.json.gz", "strikes": "../dataset/testdata/birdstrikes.csv.gz"} {
		url := s.deploy(t, file, tenant, "--price", "0.001", "--x402")
		b, err := json.Marshal(script(t, "bazaar.mjs", "URL="+url+"?limit=1"))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Valid bool
			Spec  struct{ Valid bool }
			Info  struct {
				Input struct {
					Type, Method string
					QueryParams  map[string]any
				}
				Output struct{ Example json.RawMessage }
			}
			HeaderBytes int
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if !got.Valid || !got.Spec.Valid || got.Info.Input.Type != "http" || got.Info.Input.Method != "GET" || got.HeaderBytes >= 4<<10 {
			t.Errorf("%s: %s", tenant, b)
		}
		if tenant == "airports" && !strings.Contains(string(got.Info.Output.Example), `"iata":`) {
			t.Errorf("the example is %s", got.Info.Output.Example)
		}
	}
}
