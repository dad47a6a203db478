package x402

import "strings"

// replace1 replaces the first old in s.
func replace1(s, old, new string) string { return strings.Replace(s, old, new, 1) }
