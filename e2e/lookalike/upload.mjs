// What the upload API takes: a form with metadata and modules, checked as
// strictly as the real one is known to check, and more strictly where it
// ignores mistakes that would hurt later (unknown members, for one).
import { gzipSync } from "node:zlib";
import { no } from "./failure.mjs";

const MAX_WORKER = 10 << 20; // bytes, compressed
const MAX_VARIABLE = 5 << 10;
const MAX_VARIABLES = 128;

const MODULES = {
  "application/javascript+module": "ESModule", "text/javascript+module": "ESModule", "text/plain": "Text", "application/octet-stream": "Data",
  "application/wasm": "CompiledWasm", "application/source-map": "SourceMap",
};

// Members of metadata, from the schema of the upload endpoint.
const METADATA = ["main_module", "body_part", "bindings", "compatibility_date", "compatibility_flags", "keep_bindings", "migrations", "exports", "limits", "tags",
  "observability", "tail_consumers", "logpush", "placement", "assets", "keep_assets", "cache_options", "usage_model", "annotations", "code_update_strategy"];

// Members of each type of binding beside type and name: required ones first, optional ones behind the bar.
const BINDINGS = {
  plain_text: ["text"], secret_text: ["text"], json: ["json"], kv_namespace: ["namespace_id", "|", "raw"], d1: ["id", "|", "internalEnv", "raw"],
  durable_object_namespace: ["class_name", "|", "script_name", "environment", "dispatch_namespace"], dispatch_namespace: ["namespace", "|", "outbound"],
  service: ["service", "|", "entrypoint", "environment"], version_metadata: [], inherit: ["|", "old_name", "version_id"], analytics_engine: ["|", "dataset"],
  ratelimit: ["namespace_id", "simple"], r2_bucket: ["bucket_name", "|", "jurisdiction"], queue: ["queue_name", "|", "delivery_delay"],
};

/** parse reads the form of an upload: {metadata, modules: [{name, kind, contents: Buffer}]}. */
export async function parse(body, contentType) {
  if (!/^multipart\/form-data; *boundary=/i.test(contentType ?? "")) no(400, 10006, "The request body is not multipart/form-data");
  let form;
  try {
    form = await new Response(body, { headers: { "content-type": contentType } }).formData();
  } catch {
    no(400, 10006, "Could not parse your Worker's form");
  }
  const meta = form.get("metadata");
  if (meta === null) no(400, 10026, "There is no part named metadata");
  if (typeof meta !== "string" && meta.type && !meta.type.startsWith("application/json")) no(400, 10026, `The part metadata has the type ${meta.type}`);
  let metadata;
  try {
    metadata = JSON.parse(typeof meta === "string" ? meta : await meta.text());
  } catch {
    no(400, 10026, "The metadata is not JSON");
  }
  if (metadata === null || typeof metadata !== "object" || Array.isArray(metadata)) no(400, 10026, "The metadata is not an object");
  const modules = [];
  for (const [name, part] of form) {
    if (name === "metadata") continue;
    if (typeof part === "string") no(400, 10021, `The part ${name} has no file name`);
    const type = part.type.split(";")[0].trim();
    const kind = MODULES[type];
    if (!kind) no(400, 10021, `The part ${name} has the type ${part.type || "(none)"}, which is no module's`);
    if (part.name !== name) no(400, 10021, `The part ${name} has the file name ${part.name}: modules are imported by either, depending on the schema`);
    if (modules.some((m) => m.name === name)) no(400, 10021, `There are two modules ${name}`);
    modules.push({ name, kind, contents: Buffer.from(await part.arrayBuffer()) });
  }
  return { metadata, modules };
}

/** check refuses metadata and modules that the API would refuse. Existing things are looked up in account. */
export function check({ metadata, modules }, { account, old, strict, namespace }) {
  for (const key of Object.keys(metadata)) if (!METADATA.includes(key)) no(400, 10026, `Unknown member of the metadata: ${key}`);
  const main = metadata.main_module;
  if (typeof main !== "string") no(400, 10021, "No main_module: service workers are not taken here");
  if (modules.find((m) => m.name === main)?.kind !== "ESModule") no(400, 10021, `Uncaught Error: No such module "${main}".`);
  const date = metadata.compatibility_date;
  if (typeof date !== "string" || !/^\d{4}-\d\d-\d\d$/.test(date)) no(400, 10021, "compatibility_date is missing or no date");
  if (date > new Date().toISOString().slice(0, 10)) no(400, 10021, "Can't set compatibility date in the future");
  const size = gzipSync(Buffer.concat(modules.filter((m) => m.kind !== "SourceMap").map((m) => m.contents))).length;
  if (size > MAX_WORKER) no(413, 10027, `Your Worker exceeded the size limit of 10 MiB: it is ${size} bytes, compressed`);
  for (const tag of list(metadata.tags, "tags")) if (typeof tag !== "string" || /[,&]/.test(tag)) no(400, 10021, `The tag ${JSON.stringify(tag)} is not possible`);
  if (list(metadata.tags, "tags").length > 8) no(400, 10021, "More than 8 tags");
  for (const flag of list(metadata.compatibility_flags, "compatibility_flags")) if (typeof flag !== "string") no(400, 10021, "A compatibility flag is no text");
  for (const kind of list(metadata.keep_bindings, "keep_bindings")) if (!(kind in BINDINGS) && kind !== "secret_key") no(400, 10021, `There is no type of binding ${kind} to keep`);
  if (metadata.limits !== undefined) {
    for (const [k, v] of Object.entries(metadata.limits)) {
      if (k !== "cpu_ms" && k !== "subrequests") no(400, 10021, `There is no limit ${k}`);
      if (!Number.isInteger(v) || v < 1 || v > (k === "cpu_ms" ? 300_000 : 10_000)) no(400, 10021, `The limit ${k} cannot be ${v}`);
    }
  }
  return bindings(metadata, { account, old, strict, namespace });
}

const list = (v, what) => (v === undefined ? [] : Array.isArray(v) ? v : no(400, 10026, `${what} is not a list`));

// bindings checks them, and adds those that are kept and inherited from old.
function bindings(metadata, { account, old, strict, namespace }) {
  const out = [];
  for (const b of list(metadata.bindings, "bindings")) {
    const shape = BINDINGS[b.type] ?? no(400, 10021, `There is no type of binding ${b.type}`);
    if (typeof b.name !== "string" || !/^[A-Za-z_$][\w$]*$/.test(b.name)) no(400, 10052, `The binding ${JSON.stringify(b.name)} has no name that is possible`);
    if (out.some((o) => o.name === b.name)) no(400, 10021, `The binding ${b.name} is there twice`);
    const bar = shape.indexOf("|") < 0 ? shape.length : shape.indexOf("|");
    for (const k of shape.slice(0, bar)) if (b[k] === undefined || b[k] === null || (k !== "text" && b[k] === "")) no(400, 10021, `The binding ${b.name} of type ${b.type} has no ${k}`);
    for (const k of Object.keys(b)) if (k !== "type" && k !== "name" && !shape.includes(k)) no(400, 10021, `The binding ${b.name} of type ${b.type} has an unknown member ${k}`);
    if (typeof b.text === "string" && Buffer.byteLength(b.text) > MAX_VARIABLE) no(400, 10055, `The text of ${b.name} has more than 5 KB`);
    if (b.type === "kv_namespace" && !account.kv[b.namespace_id]) no(400, 10041, `KV namespace '${b.namespace_id}' not found`);
    if (b.type === "d1" && !account.d1[b.id]) no(400, 10021, `binding ${b.name} of type d1 must have a valid \`id\` specified`);
    if (b.type === "dispatch_namespace") {
      if (!account.namespaces[b.namespace]) no(404, 100119, "workers.api.error.dispatch_namespace_not_found");
      if (namespace) no(400, 10021, "A Worker of a dispatch namespace dispatches to none here");
    }
    if (b.type === "inherit") {
      const from = old?.bindings.find((o) => o.name === (b.old_name ?? b.name));
      if (from) out.push({ ...from, name: b.name });
      else if (strict) no(400, 10057, `The binding ${b.name} cannot be inherited: there is none`);
      continue;
    }
    out.push(b);
  }
  for (const b of old?.bindings ?? []) {
    if (list(metadata.keep_bindings, "keep_bindings").includes(b.type) && !out.some((o) => o.name === b.name)) out.push(b);
  }
  if (out.filter((b) => b.type === "plain_text" || b.type === "secret_text").length > MAX_VARIABLES) no(400, 10055, "More than 128 variables");
  return out;
}

/** migrate gives the classes of Durable Objects after an upload, and the tag. */
export function migrate(metadata, bound, old) {
  let { tag = null, classes = [] } = old ?? {};
  const m = metadata.migrations;
  if (m !== undefined) {
    const steps = m.steps ?? [m];
    for (const k of Object.keys(m)) {
      if (!["old_tag", "new_tag", "steps", "new_classes", "new_sqlite_classes", "deleted_classes", "renamed_classes", "transferred_classes"].includes(k)) no(400, 10021, `Unknown member of migrations: ${k}`);
    }
    if ((m.old_tag ?? null) !== tag) no(412, 10079, `Migration tag precondition failed; current tag is '${tag ?? ""}'`);
    for (const step of steps) {
      for (const c of [...(step.new_sqlite_classes ?? []), ...(step.new_classes ?? [])]) {
        if (classes.includes(c)) no(400, 10074, `Cannot apply new-class migration to class '${c}' that is already depended on by existing Durable Objects`);
        classes = [...classes, c];
      }
      classes = classes.filter((c) => !(step.deleted_classes ?? []).includes(c));
    }
    tag = m.new_tag ?? tag;
  }
  for (const b of bound) {
    if (b.type === "durable_object_namespace" && !b.script_name && !classes.includes(b.class_name)) {
      no(400, 10061, `Cannot create binding for class '${b.class_name}' because it is not currently configured to implement Durable Objects`);
    }
  }
  return { tag, classes };
}

/** shown is a binding as the API shows it: a secret's text never comes back. */
export function shown({ text, ...b }) {
  return b.type === "secret_text" ? b : { ...b, ...(text === undefined ? {} : { text }) };
}
