// Errors as the real API gives them: a status, and codes that matter more.
export class Failure extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** no is a failure that can be thrown in an expression. */
export function no(status, code, message) {
  throw new Failure(status, code, message);
}

export function envelope(result, info) {
  return { success: true, errors: [], messages: [], result: result ?? null, ...(info ? { result_info: info } : {}) };
}

export function refusal(e) {
  return { success: false, errors: [{ code: e.code, message: e.message }], messages: [], result: null };
}
