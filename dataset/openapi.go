package dataset

import (
	"encoding/json"
	"fmt"
	"strings"
)

// object is a JSON object; encoding/json writes its keys in order.
type object = map[string]any

// openAPI describes the API in OpenAPI 3.1, with what calls cost in
// x-payment-info, which is where crawlers look first.
func (h *Handler) openAPI() object {
	s := h.Segment.schema
	paid := func(op object) object {
		if h.Facts.Paid {
			op["x-payment-info"] = object{"protocols": []any{object{"x402": object{}}}, "price": object{"mode": "fixed", "currency": "USD", "amount": h.price()}}
			op["responses"].(object)["402"] = object{"description": "Payment required: pay with x402 and ask again"}
		}
		return op
	}
	list := object{"operationId": "listRecords", "summary": "Records of " + s.Title, "parameters": s.parameters(),
		"responses": responses("A page of records", object{"type": "object", "required": []string{"data", "meta"}, "properties": object{
			"data": object{"type": "array", "items": object{"$ref": "#/components/schemas/Record"}},
			"meta": object{"type": "object", "required": []string{"version", "limit", "next"}, "properties": object{"version": object{"type": "string"}, "limit": object{"type": "integer"},
				"count": object{"type": "integer"}, "next": object{"type": []string{"string", "null"}}}}}})}
	one := object{"operationId": "getRecord", "summary": "One record", "parameters": []any{
		object{"name": "key", "in": "path", "required": true, "description": s.keyDescription(), "schema": object{"type": "string"}}, param1("select", "columns, in order", "string"), param1("version", "of the data", "string")},
		"responses": responses("The record", object{"type": "object", "required": []string{"data", "meta"}, "properties": object{"data": object{"$ref": "#/components/schemas/Record"}, "meta": object{"type": "object"}}})}
	one["responses"].(object)["404"] = object{"description": "There is no such record; nothing is charged"}
	free := func(id, summary string) object {
		return object{"get": object{"operationId": id, "summary": summary, "security": []any{}, "responses": responses(summary, object{"type": "object"})}}
	}
	doc := object{"openapi": "3.1.0", "info": object{"title": s.Title, "version": s.Version, "description": s.Description},
		"paths": object{recordsPath: object{"get": paid(list)}, recordPath + "{key}": object{"get": paid(one)},
			"/v1/schema": free("getSchema", "What the columns are, free"), "/v1/preview": free("getPreview", "The first rows, free"),
			"/pricing": free("getPricing", "What calls cost, free")},
		"components": object{"schemas": object{"Record": s.recordSchema()}}}
	if s.License != "" {
		doc["info"].(object)["license"] = object{"name": s.License}
	}
	if h.Facts.BasePath != "" {
		doc["servers"] = []any{object{"url": h.Facts.BasePath}}
	}
	return doc
}

func responses(what string, schema object) object {
	return object{"200": object{"description": what, "content": object{"application/json": object{"schema": schema}}},
		"400": object{"description": "The query is wrong; nothing is charged"}}
}

func param1(name, what, typ string) object {
	return object{"name": name, "in": "query", "required": false, "description": what, "schema": object{"type": typ}}
}

func (s *Schema) keyDescription() string {
	if s.Key == "" {
		return "row number, from 1"
	}
	return "value of " + s.Key
}

// parameters are the controls, and each column with the operators it takes.
func (s *Schema) parameters() []any {
	limit := param1("limit", "rows of a page", "integer")
	limit["schema"] = object{"type": "integer", "minimum": 1, "maximum": maxLimit, "default": defaultLimit}
	offset := param1("offset", "rows to skip", "integer")
	offset["schema"] = object{"type": "integer", "minimum": 0, "maximum": s.MaxOffset}
	format := param1("format", "of the answer", "string")
	format["schema"] = object{"type": "string", "enum": formatNames[:], "default": "json"}
	all := []any{limit, offset, param1("cursor", "from meta.next; not with offset", "string"), param1("sort", "up to 3 columns, - before one turns it round", "string"),
		param1("select", "columns, in order", "string"), param1("q", "words that must all be there; word* finds what begins so", "string"),
		param1("count", "exact counts all rows that match", "string"), format, param1("version", "of the data", "string")}
	for i := range s.Columns {
		c := &s.Columns[i]
		ops := []string{}
		for _, op := range c.operators() {
			ops = append(ops, c.Name+"__"+op)
		}
		p := param1(c.Name, fmt.Sprintf("equals; also %s", strings.Join(ops, ", ")), "")
		p["schema"] = c.jsonSchema(false)
		all = append(all, p)
	}
	return all
}

// operators are what a filter on c may compare with, besides equality.
func (c *Column) operators() []string {
	switch c.Type {
	case Bool:
		return []string{"ne", "in", "nin", "null"}
	case Text:
		return opNames[Ne:]
	}
	return opNames[Ne:Prefix]
}

func (c *Column) jsonSchema(null bool) object {
	o := object{"type": [...]string{Text: "string", Bool: "boolean", Int: "integer", Float: "number", Date: "string", Datetime: "string"}[c.Type]}
	if f := [...]string{Date: "date", Datetime: "date-time"}; c.Type >= Date {
		o["format"] = f[c.Type]
	}
	if null && c.Nullable {
		o["type"] = []any{o["type"], "null"}
	}
	if c.Label != c.Name {
		o["title"] = c.Label
	}
	return o
}

func (s *Schema) recordSchema() object {
	props, required := object{}, []string{}
	for i := range s.Columns {
		c := &s.Columns[i]
		props[c.Name] = c.jsonSchema(true)
		required = append(required, c.Name)
	}
	return object{"type": "object", "properties": props, "required": required}
}

// maxDiscovery keeps the header of a challenge below 4 KB after base64.
const maxDiscovery = 1800

// Discovery is what a challenge's bazaar extension says of GET /v1/records: how
// it is asked, an example of an answer, and the JSON Schema of the input. Long
// examples and columns beyond the first few are left out, so that the header
// of a challenge stays below 4 KB.
func (h *Handler) Discovery() (path string, bazaar json.RawMessage, err error) {
	s := h.Segment.schema
	for n := min(len(s.Columns), 20); ; n /= 2 {
		props := object{"limit": object{"type": "integer", "minimum": 1, "maximum": maxLimit}, "sort": object{"type": "string"}, "q": object{"type": "string"}}
		for i := range n {
			o := s.Columns[i].jsonSchema(false)
			delete(o, "title")
			props[s.Columns[i].Name] = o
		}
		output := object{"type": "json"}
		if n > 0 && s.PreviewRows > 0 {
			if row := h.Segment.row(0); len(row) < maxDiscovery/3 {
				output["example"] = object{"data": []json.RawMessage{row}}
			}
		}
		doc := object{
			"info": object{"input": object{"type": "http", "method": "GET", "queryParams": object{"limit": 1}}, "output": output},
			"schema": object{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": []string{"input"},
				"properties": object{"input": object{"type": "object", "required": []string{"type", "method"}, "additionalProperties": false,
					"properties": object{"type": object{"const": "http"}, "method": object{"enum": []string{"GET", "HEAD"}},
						"queryParams": object{"type": "object", "properties": props}}}, "output": object{"type": "object"}}}}
		b, err := json.Marshal(doc)
		if err != nil || len(b) <= maxDiscovery || n == 0 {
			return recordsPath, b, err
		}
	}
}
