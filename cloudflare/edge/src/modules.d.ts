// The tenant's text modules.
declare module "*/manifest.json" {
  const text: string;
  export default text;
}
declare module "*/rows.ndjson" {
  const text: string;
  export default text;
}
