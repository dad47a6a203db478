// Package dataset turns a file into an API. Ingest reads CSV, TSV, JSON,
// NDJSON or Parquet and writes one immutable segment file per version; Open maps a segment
// into memory; Handler answers the records grammar from it.
//
// Data never changes within a version. That is what makes the rest small: a
// record is rendered once, at ingest; an answer is a pure function of (version,
// canonical query), so it can be computed again instead of being stored.
package dataset

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/402claw/clawr"
)

// The codes of files that cannot become a dataset.
const (
	CodeRaggedRow       clawr.Code = "csv_ragged_row"
	CodeUnclosedQuote   clawr.Code = "csv_unclosed_quote"
	CodeBareQuote       clawr.Code = "csv_bare_quote"
	CodeInvalidUTF8     clawr.Code = "invalid_utf8"
	CodeNUL             clawr.Code = "nul_byte"
	CodeEmptyHeader     clawr.Code = "empty_header"
	CodeDuplicateColumn clawr.Code = "duplicate_column"
	CodeTooManyColumns  clawr.Code = "too_many_columns"
	CodeTooManyRows     clawr.Code = "too_many_rows"
	CodeFileTooLarge    clawr.Code = "file_too_large"
	CodeCellTooLarge    clawr.Code = "cell_too_large"
	CodeRowTooLarge     clawr.Code = "row_too_large"
	CodeEmpty           clawr.Code = "empty_dataset"
	CodeKeyNotUnique    clawr.Code = "key_not_unique"
	CodeInvalidJSON     clawr.Code = "invalid_json"
	CodeNestedValue     clawr.Code = "nested_value"
	CodeUnknownFormat   clawr.Code = "unknown_format"
	CodeUnknownEncoding clawr.Code = "unknown_encoding"
	CodeTypeMismatch    clawr.Code = "type_mismatch"
	CodeBadOption       clawr.Code = "invalid_option"
	CodeCompression     clawr.Code = "invalid_compression"
	CodeParquet         clawr.Code = "invalid_parquet"
	CodeFileChanged     clawr.Code = "file_changed"
)

// The codes of queries that cannot be answered; all are 400 and never charged.
const (
	CodeUnknownParameter   clawr.Code = "unknown_parameter"
	CodeUnknownColumn      clawr.Code = "unknown_column"
	CodeUnknownOperator    clawr.Code = "unknown_operator"
	CodeDuplicateParameter clawr.Code = "duplicate_parameter"
	CodeInvalidValue       clawr.Code = "invalid_value"
	CodeOverLimit          clawr.Code = "over_limit"
	CodeInvalidCursor      clawr.Code = "invalid_cursor"
	CodeQueryTooLong       clawr.Code = "query_too_long"
)

// What a file may hold, from records.md. Beyond any of them a file is refused;
// nothing is cut to fit.
const (
	MaxBytes   = 1 << 30    // bytes of a file, after decompression and decoding
	MaxRows    = 5_000_000  // rows
	MaxColumns = 98         // columns; D1 has 100, of which clawr needs two
	MaxCell    = 1 << 20    // bytes of a cell
	MaxRow     = 1_900_000  // bytes of a row
	maxInt     = 1<<53 - 1  // beyond it JavaScript cannot count
	indexable  = 64         // mean bytes of a text cell up to which it is sorted
	maxNull    = -1 << 63   // ordinal of null: below every value
	sniffBytes = 64 << 10   // what the format is guessed from
	tempPrefix = ".ingest-" // names of unfinished segments
	suffix     = ".seg"     // of segment files
)

// Type is what the values of a column are.
type Type uint8

// The types. A column is the first of these that every cell of it is.
const (
	Text     Type = iota // UTF-8, ordered by bytes
	Bool                 // true or false
	Int                  // |n| ≤ 2^53−1
	Float                // a finite IEEE double
	Date                 // YYYY-MM-DD
	Datetime             // RFC 3339, kept in UTC
)

var typeNames = [...]string{"text", "bool", "int", "float", "date", "datetime"}

func (t Type) String() string { return typeNames[t] }

// MarshalText gives the name of t.
func (t Type) MarshalText() ([]byte, error) { return []byte(typeNames[t]), nil }

// UnmarshalText reads the name of a type.
func (t *Type) UnmarshalText(b []byte) error {
	p, err := ParseType(string(b))
	*t = p
	return err
}

// ParseType reads the name of a type, as --type col=NAME has it.
func ParseType(s string) (Type, error) {
	for i, n := range typeNames {
		if n == s {
			return Type(i), nil
		}
	}
	return Text, &clawr.Error{Code: CodeBadOption, Param: "type", Message: fmt.Sprintf("%q is not a type of column", s),
		Fix: "use one of " + strings.Join(typeNames[:], ", ")}
}

// Options say how a file is read. The zero value guesses everything.
type Options struct {
	Format      string          // csv, tsv, json, ndjson or parquet; "" guesses from name and content
	Encoding    string          // such as windows-1252; "" is UTF-8, or UTF-16 if a mark says so
	Delimiter   string          // one ASCII character; "" guesses among , ; tab and |
	Types       map[string]Type // overrides by column name or label
	Key         string          // column of GET /v1/records/{key}; "" is id if that is unique
	Index       []string        // columns that are indexed at the edge as well
	Search      []string        // columns that q looks into; none = every text column
	PreviewRows int             // rows that GET /v1/preview gives away; 0 = 3, below 0 none
	Title       string          // of the dataset; "" is the file's name
	Description string
	License     string
	Source      string // where the data is from
	// Progress, if set, is called about once a megabyte with what was read so far.
	Progress func(bytes, rows int64)
	// MaxBytes lowers the limit of the same name; 0 keeps it.
	MaxBytes int64
}

// Report is what Ingest made of a file.
type Report struct {
	ID       string   `json:"id"`      // of the segment: 64 hex digits
	Version  string   `json:"version"` // the first 16 of them
	Path     string   `json:"path"`    // of the segment; empty after Inspect
	Bytes    int64    `json:"bytes"`   // that were read
	Size     int64    `json:"size"`    // of the segment
	Schema   *Schema  `json:"schema"`
	Warnings []string `json:"warnings,omitempty"`
}

// at builds the error of a place in a file. A line of 0 means the file as a
// whole, a column of 0 the line.
func at(code clawr.Code, line, column int, name, message, fix string) *clawr.Error {
	where := ""
	switch {
	case line > 0 && column > 0 && name != "":
		where = fmt.Sprintf("line %d, column %d (%s): ", line, column, printable(name))
	case line > 0 && column > 0:
		where = fmt.Sprintf("line %d, column %d: ", line, column)
	case line > 0:
		where = fmt.Sprintf("line %d: ", line)
	}
	return &clawr.Error{Code: code, Message: where + message, Fix: fix}
}

// printable is a stranger's name on one line of a message.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, clip([]byte(name)))
}
