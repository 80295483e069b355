// Columns as they come: a JSON header, then arrays that are used in place, without a copy.
import type { Column, ColumnsHeader, Dtype } from "../api";

export type NumberArray = Float64Array | Float32Array | Uint32Array | Int32Array | Uint16Array | Uint8Array;

export interface NumericColumn extends Column {
  data: NumberArray;
}

export interface TextColumn extends Column {
  kind: "text";
  at(row: number): string;
}

export type LoadedColumn = NumericColumn | TextColumn;

const ARRAYS: Record<Dtype, new (buffer: ArrayBuffer, start: number, length: number) => NumberArray> = {
  f64: Float64Array,
  f32: Float32Array,
  u32: Uint32Array,
  i32: Int32Array,
  u16: Uint16Array,
  u8: Uint8Array,
};

/** The code that stands for "no value" in a category's column. */
export const missing = (column: Column): number =>
  ({ u8: 255, u16: 65535, u32: 0xffffffff })[column.dtype as "u8"] ?? -1;

export function isText(column: LoadedColumn): column is TextColumn {
  return column.kind === "text";
}

export function decodeColumns(buffer: ArrayBuffer): { header: ColumnsHeader; columns: LoadedColumn[] } {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size))) as ColumnsHeader;
  const body = 4 + size;
  return { header, columns: header.columns.map((column) => loaded(column, buffer, body)) };
}

function loaded(column: Column, buffer: ArrayBuffer, body: number): LoadedColumn {
  if (column.kind !== "text") {
    return { ...column, data: new ARRAYS[column.dtype](buffer, body + column.start, column.length) };
  }
  const offsets = new Uint32Array(buffer, body + column.offsets!.start, column.length + 1);
  const bytes = new Uint8Array(buffer, body + column.start, column.size);
  const decoder = new TextDecoder();
  return { ...column, kind: "text", at: (row) => decoder.decode(bytes.subarray(offsets[row], offsets[row + 1])) };
}

/** A category's value in a row; null where it has none. */
export function categoryAt(column: NumericColumn, row: number): string | null {
  return column.values?.[column.data[row]] ?? null;
}
