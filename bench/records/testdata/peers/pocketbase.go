package main

import (
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// pocketbaseHandler is PocketBase with the records as a collection that all may
// list, with indexes on what the benchmark filters by and without its log of
// requests.
func pocketbaseHandler(file, dir string) (http.Handler, error) {
	app := pocketbase.NewWithConfig(pocketbase.Config{HideStartBanner: true, DefaultDataDir: filepath.Join(dir, "pocketbase")})
	if err := app.Bootstrap(); err != nil {
		return nil, err
	}
	if err := app.RunAllMigrations(); err != nil {
		return nil, err
	}
	app.Settings().Logs.MaxDays = 0
	if err := app.Save(app.Settings()); err != nil {
		return nil, err
	}
	all := ""
	c := core.NewBaseCollection("records")
	c.ListRule = &all
	c.Fields.Add(&core.NumberField{Name: "num"}, &core.NumberField{Name: "price"}, &core.NumberField{Name: "score"}, &core.NumberField{Name: "stock"}, &core.BoolField{Name: "active"})
	for _, n := range []string{"sku", "name", "brand", "category", "country", "city", "released", "updated_at", "zip", "notes"} {
		c.Fields.Add(&core.TextField{Name: n})
	}
	for _, n := range []string{"num", "price", "brand", "country", "category", "name"} {
		c.AddIndex("by_"+n, false, n, "")
	}
	if err := app.Save(c); err != nil {
		return nil, err
	}
	db := app.NonconcurrentDB().(*dbx.DB).DB()
	tx, err := db.Begin()
	if err != nil {
		return nil, err
	}
	stmt, err := tx.Prepare(`INSERT INTO records (id, num, sku, name, brand, category, country, city, price, score, stock, active, released, updated_at, zip, notes) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`)
	if err != nil {
		return nil, err
	}
	if err := each(file, func(r *record, _ []byte) error {
		score := 0.0
		if r.Score != nil {
			score = *r.Score
		}
		_, err := stmt.Exec(fmt.Sprintf("r%014d", r.ID), r.ID, r.SKU, r.Name, r.Brand, r.Category, r.Country, r.City, r.Price, score, r.Stock, r.Active, r.Released, r.Updated, r.Zip, r.Notes)
		return err
	}); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	if _, err := db.Exec(`ANALYZE`); err != nil {
		return nil, err
	}
	router, err := apis.NewRouter(app)
	if err != nil {
		return nil, err
	}
	return router.BuildMux()
}
