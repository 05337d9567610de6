/* Bytes of the page -> typed arrays. */

const TYPES = {f8: Float64Array, f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array};

function fromBase64(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = letters.charCodeAt(k);
  return bytes;
}

/** Decompress gzip with the browser's own decoder. */
async function gunzip(bytes) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot decompress data (it lacks DecompressionStream); any browser of 2023 or later can");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Arrays in the order of their types and lengths; each starts at a multiple of eight bytes. */
function readArrays(bytes, types) {
  let offset = bytes.byteOffset;
  return types.map(([type, length]) => {
    const array = new TYPES[type](bytes.buffer, offset, length);
    offset += Math.ceil(array.byteLength / 8) * 8;
    return array;
  });
}
