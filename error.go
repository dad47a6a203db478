package clawr

import (
	"errors"
	"time"
)

// Code is the machine-readable name of an error, as it stands in the "error"
// field of every answer.
type Code string

// The codes of the dispatcher and the control plane. Datasets add their own
// for queries and files, all answered 400; the x402 package adds the reason
// strings of the protocol, all answered 402.
const (
	CodeInternal           Code = "internal"
	CodeBadAmount          Code = "invalid_amount"
	CodeBadSlug            Code = "invalid_slug"
	CodeBadHost            Code = "invalid_host"
	CodeBadAddress         Code = "invalid_address"
	CodeBadNetwork         Code = "invalid_network"
	CodeBadPlan            Code = "invalid_plan"
	CodeBadRequest         Code = "invalid_request"
	CodeBadWindow          Code = "invalid_window"
	CodeBadHeader          Code = "invalid_payment_header"
	CodeMissingPayment     Code = "missing_payment_signature"
	CodeTokenMissing       Code = "token_missing"
	CodeScopeMissing       Code = "scope_missing"
	CodeNotFound           Code = "not_found"
	CodeTenantNotFound     Code = "tenant_not_found"
	CodeRecordNotFound     Code = "record_not_found"
	CodeBoundElsewhere     Code = "payment_bound_elsewhere"
	CodeAlreadyUsed        Code = "already_used"
	CodeConflict           Code = "conflict"
	CodeHostTaken          Code = "host_taken"
	CodeLedgerHome         Code = "ledger_home_conflict"
	CodePayToMissing       Code = "pay_to_missing"
	CodeMethodNotAllowed   Code = "method_not_allowed"
	CodeBodyTooLarge       Code = "body_too_large"
	CodeHeadersTooLarge    Code = "headers_too_large"
	CodeVersionGone        Code = "version_gone"
	CodeRateLimited        Code = "rate_limited"
	CodeQuotaExceeded      Code = "usage_quota_exceeded"
	CodeCapExceeded        Code = "cap_exceeded"
	CodeCPULimit           Code = "cpu_limit"
	CodeWorkerFailure      Code = "tenant_worker_failure"
	CodeWorkerTimeout      Code = "tenant_worker_timeout"
	CodeSettlementPending  Code = "settlement_pending"
	CodeSettlementFailed   Code = "settlement_failed"
	CodeFacilitatorDown    Code = "facilitator_unavailable"
	CodeTenantPaused       Code = "tenant_paused"
	CodeOverloaded         Code = "overloaded"
	CodeReadOnly           Code = "read_only"
	CodeNotCharged         Code = "not_charged"
	CodeRefundDue          Code = "refund_due"
	CodeIdentifierUsed     Code = "payment_identifier_used"
	CodeLocked             Code = "data_dir_locked"
	CodeUnreachable        Code = "unreachable"
	CodeWrongChain         Code = "wrong_chain"
	CodeNoContract         Code = "asset_without_code"
	CodeUnfunded           Code = "signer_unfunded"
	CodeQuoteOverLimit     Code = "quote_over_limit"
	CodePaymentRejected    Code = "payment_rejected"
	CodePaymentUnknown     Code = "payment_unknown"
	CodeUsage              Code = "usage"
	CodeFile               Code = "file"
	CodeSegmentCorrupt     Code = "segment_corrupt"
	CodeNetworkUnsupported Code = "network_unsupported"
)

// Error is an error that may be shown: a code for machines, a message and a
// fix for people, and a cause for the log.
type Error struct {
	Code    Code
	Status  int    // HTTP status; 0 means Code.Status
	Message string // what is wrong and why, one line
	Fix     string // what to do about it, runnable where possible
	Param   string // the parameter or flag at fault
	// RetryAfter, if positive, says when the same request may succeed.
	RetryAfter time.Duration
	Err        error // the cause; never shown to a stranger
}

func (e *Error) Error() string {
	switch {
	case e.Message == "" && e.Err != nil:
		return string(e.Code) + ": " + e.Err.Error()
	case e.Message == "":
		return string(e.Code)
	case e.Err != nil:
		return string(e.Code) + ": " + e.Message + ": " + e.Err.Error()
	}
	return string(e.Code) + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// CodeOf is the code of the first Error in err's tree, and internal for
// errors that have none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// HTTPStatus is the status that e is answered with.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	return e.Code.Status()
}

// Status is the HTTP status that goes with c. Codes it does not know are bad
// input: 400.
func (c Code) Status() int {
	switch c {
	case CodeInternal:
		return 500
	case CodeTokenMissing:
		return 401
	case CodeMissingPayment, CodeSettlementFailed:
		return 402
	case CodeScopeMissing:
		return 403
	case CodeNotFound, CodeTenantNotFound, CodeRecordNotFound:
		return 404
	case CodeMethodNotAllowed:
		return 405
	case CodeBoundElsewhere, CodeAlreadyUsed, CodeIdentifierUsed, CodeConflict, CodeHostTaken, CodeLedgerHome, CodeLocked:
		return 409
	case CodeVersionGone:
		return 410
	case CodeBodyTooLarge:
		return 413
	case CodeRateLimited, CodeQuotaExceeded, CodeCapExceeded, CodeCPULimit:
		return 429
	case CodeHeadersTooLarge:
		return 431
	case CodeWorkerFailure, CodeRefundDue:
		return 502
	case CodeSettlementPending, CodeFacilitatorDown, CodeTenantPaused, CodeOverloaded, CodeReadOnly:
		return 503
	case CodeWorkerTimeout:
		return 504
	}
	return 400
}
