// SHA-256, HMAC and CRC-32: pages over http have no crypto.subtle.
const K = [], H = []
for (let n = 2; K.length < 64; n++) {
  let isPrime = true
  for (let m = 2; m * m <= n; m++) if (n % m == 0) isPrime = false
  if (!isPrime) continue
  if (H.length < 8) H.push(Math.sqrt(n) % 1 * 2 ** 32 | 0)
  K.push(Math.cbrt(n) % 1 * 2 ** 32 | 0)
}

const join = (...parts) => {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}
const utf8 = text => new TextEncoder().encode(text)
const hex = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('')

function sha256(data) {
  const whole = data.length - data.length % 64, tail = data.length % 64
  const end = new Uint8Array(tail < 56 ? 64 : 128), last = new DataView(end.buffer)
  end.set(data.subarray(whole))
  end[tail] = 128
  last.setUint32(end.length - 8, data.length / 2 ** 29)
  last.setUint32(end.length - 4, data.length * 8)
  const state = Int32Array.from(H), w = new Int32Array(64)
  for (const [bytes, size] of [[data, whole], [end, end.length]]) {
    const view = new DataView(bytes.buffer, bytes.byteOffset)
    for (let at = 0; at < size; at += 64) {
      let [a, b, c, d, e, f, g, h] = state
      for (let n = 0; n < 64; n++) {
        if (n < 16) w[n] = view.getInt32(at + 4 * n)
        else {
          const x = w[n - 15], y = w[n - 2]
          w[n] = w[n - 16] + w[n - 7] + ((x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3) +
            ((y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10)
        }
        const t = h + ((e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7)) +
          (e & f ^ ~e & g) + K[n] + w[n] | 0
        const u = ((a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10)) +
          (a & b ^ a & c ^ b & c) | 0
        h = g; g = f; f = e; e = d + t | 0
        d = c; c = b; b = a; a = t + u | 0
      }
      state[0] += a; state[1] += b; state[2] += c; state[3] += d
      state[4] += e; state[5] += f; state[6] += g; state[7] += h
    }
  }
  const out = new DataView(new ArrayBuffer(32))
  state.forEach((word, n) => out.setInt32(4 * n, word))
  return new Uint8Array(out.buffer)
}

function hmac(key, message) {
  if (key.length > 64) key = sha256(key)
  key = join(key, new Uint8Array(64 - key.length))
  for (const pad of [0x36, 0x5c]) message = sha256(join(key.map(byte => byte ^ pad), message))
  return message
}

const CRC = Int32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? n >>> 1 ^ 0xedb88320 : n >>> 1
  return n
})
function crc32(data) {
  let crc = -1
  for (const byte of data) crc = CRC[(crc ^ byte) & 255] ^ crc >>> 8
  return ~crc >>> 0
}
