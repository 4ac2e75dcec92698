// A client of docs/PROTOCOL.md over HTTP: each request has a few frames, and so has its answer.
const WINDOW = 4096, PACKET = 1024
const HELLO = 1, BEGIN = 2, END = 3, ABORT = 4, ORDER = 6
const WELCOME = 0x81, STATUS = 0x82, AGAIN = 0x83, DONE = 0x84, ERROR = 0x85, READY = 0x86
const PATIENCE_MS = 30000
const HERE = location.pathname.replace(/[^/]*$/, '')

class Refused extends Error {
  constructor(code, text) {
    super(text)
    this.code = code
  }
}
class Gone extends Error {}
class Stopped extends Error {}

const sleep = ms => new Promise(done => setTimeout(done, ms))
const frame = (content, channel = 0) =>
  join([content.length & 255, content.length >> 8, channel], content)
const number = (value, size) => Uint8Array.from({length: size}, (_, n) => value / 2 ** (8 * n))
const field = (bytes, at, size) => {
  let value = 0
  while (size--) value = value * 256 + bytes[at + size]
  return value
}

async function ask(path, options, ms) {
  const control = new AbortController()
  const timer = setTimeout(() => control.abort(), ms)
  try {
    const answer = await fetch(HERE + path, {...options, signal: control.signal})
    return [answer, new Uint8Array(await answer.arrayBuffer())]
  } finally {
    clearTimeout(timer)
  }
}

// What the board says of itself. Raises TypeError, or what fetch raises, if it is not there.
async function look() {
  const [answer, body] = await ask('state', {}, 8000)
  const text = new TextDecoder().decode(body)
  if (!answer.ok) throw new Refused('http', text)
  return JSON.parse(text)
}

// `job`: {secret; onState(text): how the connection is; isStopped}.
class Session {
  constructor(job) {
    this.job = job
    this.name = hex(crypto.getRandomValues(new Uint8Array(16)))
  }

  // The messages that answer `frames`. A connection that breaks is made again.
  async exchange(frames, kind = 's') {
    for (let tries = 0; ; tries++) {
      let answer, body
      try {
        [answer, body] = await ask(`${kind}/${this.name}`, {method: 'POST', body: frames}, PATIENCE_MS)
      } catch {
        if (this.job.isStopped) throw new Stopped()
        this.job.onState(`The connection is interrupted: trying again (${tries + 1})`)
        await sleep(Math.min(500 * 2 ** tries, 8000))
        continue
      }
      this.job.onState('')
      if (!(answer.headers.get('Content-Type') || '').includes('octet-stream')) {
        if (answer.status == 410) throw new Gone()
        throw new Refused('http', answer.status + ' ' + new TextDecoder().decode(body))
      }
      const messages = []
      for (let at = 0; at + 3 <= body.length; at += 3 + field(body, at, 2))
        messages.push(body.subarray(at + 3, at + 3 + field(body, at, 2)))
      const error = messages.find(message => message[0] == ERROR)
      if (error) {
        const texts = new TextDecoder()
        throw new Refused(texts.decode(error.subarray(2, 2 + error[1])),
          texts.decode(error.subarray(2 + error[1])))
      }
      return messages
    }
  }

  async hello() {
    const nonce = crypto.getRandomValues(new Uint8Array(16))
    const [welcome] = await this.exchange(frame(join([HELLO, 2], nonce)))
    if (!welcome || welcome[0] != WELCOME) throw new Gone()
    this.needsSecret = welcome[2] & 1
    this.nonces = join(nonce, welcome.subarray(3, 19))
    if (this.needsSecret && !this.job.secret)
      throw new Refused('secret', 'the board asks for its secret')
  }

  prove(who, message) {
    return this.needsSecret ?
      hmac(utf8(this.job.secret), join(utf8('mpota2 ' + who), this.nonces, message)) : []
  }

  check(who, message, size, more = []) {
    const due = this.prove(who, join(message.subarray(0, size), more))
    if (hex(due) != hex(message.subarray(size)))
      throw new Refused('secret', 'who answers does not know the secret: it is another board')
  }

  async order(what, text = '') {
    const message = join([ORDER, what], utf8(text))
    await this.exchange(frame(join(message, this.prove('order', message))), 'o')
  }
}

// The packets of `stream` from `from` to `to`.
function packets(stream, from, to) {
  const frames = []
  while (from < to) {
    const window = from - from % WINDOW
    const stop = Math.min(window + WINDOW, stream.length)
    const end = Math.min(from + PACKET - 6, stop, to)
    const parts = [number(from & 0xffff, 2), stream.subarray(from, end)]
    if (end == stop) parts.push(number(crc32(stream.subarray(window, stop)), 4))
    frames.push(frame(join(...parts), 1))
    from = end
  }
  return join(...frames)
}

// Send a file that was judged. `job.onWritten(position, size)` is told what the board has written.
// Whether it restarts into it now. Raises Refused, Stopped.
async function send(data, judged, job) {
  const stream = judged.endFirst ? join(data.subarray(data.length - SECTOR), data) : data
  const sha = sha256(data)
  let hasBegun = false
  for (;;) {
    try {
      return await sendOnce()
    } catch (error) {
      const canGoOn = error instanceof Gone ||
        hasBegun && ['busy', 'timeout'].includes(error.code)  // busy: with what broke off
      if (!canGoOn) throw error
      if (job.isStopped) throw new Stopped()
      job.onState('The board does not know this tab any more: going on')
      await sleep(1000)
    }
  }

  async function sendOnce() {
    const session = new Session(job)
    await session.hello()
    const version = utf8(judged.version).subarray(0, 64)
    const begin = join([BEGIN, judged.endFirst ? 3 : 1], number(data.length, 4), sha,
      number(judged.chip, 2), [version.length], version)
    const answers = await session.exchange(frame(join(begin, session.prove('begin', begin))))
    const ready = answers.find(message => message[0] == READY)
    if (!ready) throw new Gone()
    session.check('ready', ready, 7)
    hasBegun = true
    let at, limit
    const heed = message => {
      if (message[0] < STATUS || message[0] > READY || message.length < 7) return
      const position = field(message, 1, 4)
      limit = position + field(message, 5, 2)
      if (message[0] != STATUS) at = position
      job.onWritten(position, stream.length)
    }
    answers.forEach(heed)
    while (at < stream.length) {
      if (job.isStopped) {
        await session.exchange(frame(join([ABORT], session.prove('abort', [ABORT])))).catch(() => {})
        throw new Stopped()
      }
      const to = Math.min(limit, stream.length)
      const heard = await session.exchange(packets(stream, at, to))
      at = to
      heard.forEach(heed)
    }
    job.onWritten(stream.length, stream.length, true)
    const end = [END, 1]
    for (;;) {
      const heard = await session.exchange(frame(join(end, session.prove('end', join(end, sha)))))
      const done = heard.find(message => message[0] == DONE)
      if (!done) continue
      session.check('done', done, 2, sha)
      return Boolean(done[1] & 1)
    }
  }
}
