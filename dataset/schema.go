package dataset

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/402claw/clawr"
	"golang.org/x/text/unicode/norm"
)

// Schema is what a dataset says of itself, free of charge.
type Schema struct {
	Version     string   `json:"version,omitempty"` // not in the segment: it is its hash
	Title       string   `json:"title"`
	Description string   `json:"description,omitempty"`
	License     string   `json:"license,omitempty"`
	Source      string   `json:"source,omitempty"`
	Rows        int64    `json:"rows"`
	Key         string   `json:"key"` // column of {key}; "" means the row number
	Search      []string `json:"search"`
	Index       []string `json:"-"` // asked for at the edge
	PreviewRows int      `json:"preview_rows"`
	MaxOffset   int64    `json:"max_offset"`
	Columns     []Column `json:"columns"`
	Warnings    []string `json:"warnings,omitempty"`
}

// Column describes one column. Min and Max are JSON values, those of text cut
// to 64 bytes.
type Column struct {
	Name     string `json:"name"`
	Label    string `json:"label"` // as the file spells it
	Type     Type   `json:"type"`
	Nullable bool   `json:"nullable"`
	Indexed  bool   `json:"indexed"`
	Nulls    int64  `json:"nulls"`
	Empty    int64  `json:"empty,omitempty"` // cells of text that are ""
	Distinct int64  `json:"distinct"`
	Min      any    `json:"min,omitempty"`
	Max      any    `json:"max,omitempty"`
	Fraction int    `json:"fraction,omitempty"` // decimals of a datetime's seconds: 0, 3, 6 or 9
}

// Column gives the position of the column of that name, or -1.
func (s *Schema) Column(name string) int {
	for i := range s.Columns {
		if s.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// controls are the parameters of the grammar that are not columns.
var controls = [...]string{"count", "cursor", "format", "limit", "offset", "q", "select", "sort", "version"}

func isControl(name string) bool {
	for _, c := range controls {
		if c == name {
			return true
		}
	}
	return false
}

// columnNames makes the names of the API from the labels of a file: lower-case
// ASCII, unique, never a control of the grammar. Equal labels are an error, as
// one of the columns would be unreachable by its label.
func columnNames(labels []string, line int) ([]string, error) {
	if len(labels) > MaxColumns {
		return nil, at(CodeTooManyColumns, line, 0, "", fmt.Sprintf("%d columns, at most %d are possible", len(labels), MaxColumns),
			"split the file or drop columns")
	}
	names := make([]string, len(labels))
	used, seen := map[string]bool{}, map[string]int{}
	for i, label := range labels {
		if strings.TrimSpace(label) == "" {
			return nil, at(CodeEmptyHeader, line, i+1, "", "the column has no name", "give every column a name in the first line")
		}
		if j, ok := seen[label]; ok {
			return nil, at(CodeDuplicateColumn, line, i+1, label, fmt.Sprintf("column %d has the same name", j), "rename one of the two")
		}
		seen[label] = i + 1
		name := columnName(label)
		if name == "" {
			name = fmt.Sprintf("column_%d", i+1)
		}
		if isControl(name) {
			name += "_"
		}
		for base, n := name, 2; used[name]; n++ {
			name = fmt.Sprintf("%s_%d", strings.TrimRight(base[:min(len(base), 58)], "_"), n)
		}
		used[name] = true
		names[i] = name
	}
	return names, nil
}

// columnName folds a label to [a-z][a-z0-9_]{0,62} without "__"; "" if nothing
// of it is left.
func columnName(label string) string {
	var b strings.Builder
	gap := false
	for _, r := range norm.NFKD.String(label) {
		r = unicode.ToLower(r)
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			if gap && b.Len() > 0 {
				b.WriteByte('_')
			}
			gap = false
			if b.Len() == 0 && r <= '9' {
				b.WriteString("c_")
			}
			b.WriteRune(r)
		case unicode.Is(unicode.Mn, r): // an accent that NFKD took off its letter
		case r == 'ß':
			b.WriteString("ss")
		default:
			gap = true
		}
		if b.Len() >= 62 {
			break
		}
	}
	return strings.TrimRight(b.String()[:min(b.Len(), 62)], "_")
}

// column finds a column that a person named, by name or label.
func (s *Schema) find(name, param string) (int, error) {
	for i := range s.Columns {
		if s.Columns[i].Name == name || s.Columns[i].Label == name {
			return i, nil
		}
	}
	return -1, &clawr.Error{Code: CodeUnknownColumn, Param: param, Message: fmt.Sprintf("there is no column %q", name),
		Fix: "did you mean " + s.nearest(name) + "?"}
}

// nearest is the column whose name takes the fewest edits to get to from name.
func (s *Schema) nearest(name string) string {
	best, dist := "", 1<<30
	try := func(c string) {
		if d := edits(name, c); d < dist {
			best, dist = c, d
		}
	}
	for i := range s.Columns {
		try(s.Columns[i].Name)
	}
	return best
}

// edits is the Levenshtein distance of two short strings; a transposition of
// neighbours counts as one. Strings of strangers are cut to 64 bytes.
func edits(a, b string) int {
	a, b = strings.ToLower(a[:min(len(a), 64)]), b[:min(len(b), 64)]
	var rows [3][65]int
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur, prev, before := &rows[i%3], &rows[(i+2)%3], &rows[(i+1)%3]
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}
