// What goes wrong on the way to the real API, on order of a test:
//
//   {"match": "PUT /.*\/scripts\/", "times": 1, "skip": 0, "kind": "cut"}
//
// match is a regular expression over "METHOD path"; skip lets so many matches
// pass first. Kinds:
//
//   429       too many calls, with retryAfter seconds if given
//   500       an envelope with a code that says nothing
//   html      502 with a page instead of an envelope
//   cut       the connection ends, and nothing was done
//   cut-after it was done, and the connection ends instead of the answer
//   hold      waits for ms, then goes on
export class Faults {
  list = [];

  set(list) {
    this.list = list.map((f) => ({ times: 1, skip: 0, ...f, match: new RegExp(f.match) }));
  }

  /** next is the fault that is due for a call, or undefined. */
  next(line) {
    for (const f of this.list) {
      if (!f.match.test(line) || f.times <= 0) continue;
      if (f.skip > 0) {
        f.skip--;
        continue;
      }
      f.times--;
      return f;
    }
  }
}
