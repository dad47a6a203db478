-- +goose Up
-- Thousands of payments of a burst end in the same second: a page of them is found by its first id, and not by sorting all.
DROP INDEX payments_settle;
CREATE INDEX payments_settle ON payments(valid_before, id) WHERE money IN('held','signed');
