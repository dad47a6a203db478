-- +goose Up
-- What async delivered is sold when its answer is stored, and only the proof that it can never be charged changes its event.
-- Until now a reorganisation took the event back until the payment was mined again. What is not mined is found by an index, which
-- is for held and signed ones: so both are named.
UPDATE usage_events SET lifecycle = 'dispatch_success', billable = 1, countable = 1, amount = price, error = ''
  WHERE lifecycle = 'settlement_pending' AND payment_id IN(
    SELECT id FROM payments WHERE money IN('held','signed') AND money = 'signed' AND policy = 'async' AND event_id = usage_events.event_id);
