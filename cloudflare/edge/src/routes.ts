// What a dataset's paths are, and which of them cost: dataset/handler.go's
// routeOf. It goes by the path as it was sent: %2f, //, ;x and other cases spell
// no path of ours, so they lead nowhere rather than past the till.
export type Route = "records" | "record" | "schema" | "preview" | "health" | "pricing" | "openapi" | "nothing";

const FIXED: Record<string, Route> = {
  "/v1/records": "records", "/v1/schema": "schema", "/v1/preview": "preview", "/health": "health", "/pricing": "pricing", "/openapi.json": "openapi",
};

/** routeOf is what a path (escaped) asks for; key is the record's. */
export function routeOf(path: string): { route: Route; key: string } {
  const fixed = Object.hasOwn(FIXED, path) ? FIXED[path] : undefined;
  if (fixed) return { route: fixed, key: "" };
  const m = /^\/v1\/records\/([^/;]+)$/.exec(path);
  const key = m && unescapePath(m[1]!);
  if (key === null || key === undefined || key === "." || key === "..") return { route: "nothing", key: "" };
  return { route: "record", key };
}

/** unescapePath undoes percent-encoding of UTF-8; undefined if it is not that. */
export function unescapePath(s: string): string | undefined {
  if (/%(?![0-9a-fA-F]{2})/.test(s)) return undefined;
  try {
    return decodeURIComponent(s);
  } catch {
    return undefined;
  }
}

/** units is what a request of a dataset costs: 1 for records, by GET and HEAD alone, 0 for what is free. */
export function units(method: string, path: string): number {
  if (method !== "GET" && method !== "HEAD") return 0;
  const { route } = routeOf(path);
  return route === "records" || route === "record" ? 1 : 0;
}
