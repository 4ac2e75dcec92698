// What a file is, and whether this board can take it: before anything is sent. The board judges
// again, by all that it knows (device/ota/image.py, merged.py, manifest.py).
const CHIPS = {0: 'ESP32', 2: 'ESP32-S2', 5: 'ESP32-C3', 9: 'ESP32-S3', 12: 'ESP32-C2',
  13: 'ESP32-C6', 16: 'ESP32-H2', 18: 'ESP32-P4', 20: 'ESP32-C61', 23: 'ESP32-C5'}
// Where the bootloader stands in flash, if not at its start.
const BOOTLOADER = {0: 0x1000, 2: 0x1000, 18: 0x2000, 23: 0x2000}
const LOOKS = [['<', 'a web page'], ['{', 'JSON'], ['\x1f\x8b', 'compressed by gzip: unpack it first'],
  ['PK', 'a zip archive: unpack it first'], ['UF2\n', 'a UF2 file'],
  ['\x7fELF', 'an ELF file: take the .bin beside it'], [':', 'an Intel HEX file: take the .bin']]
const SECTOR = 4096

const sizeText = n => n < 1024 ? n + ' bytes' : n < 1 << 20 ? (n / 1024).toFixed(1) + ' KiB' :
  (n / (1 << 20)).toFixed(2) + ' MiB'
const chipText = id => CHIPS[id] || 'chip id ' + id
const up = n => Math.ceil(n / SECTOR) * SECTOR
const ascii = (data, from, to) => String.fromCharCode(...data.subarray(from, to))
const word = (data, at) => at + 4 > data.length ? 0 :
  new DataView(data.buffer, data.byteOffset).getUint32(at, true)
const textAt = (data, at, size) => ascii(data, at, at + size).split('\0')[0].replace(/[^ -~]/g, '?')

// {kind, rows, problems; chip, version, isSigned: of what BEGIN tells}
function judge(data, board) {
  const found = {kind: '', rows: [], problems: [], chip: 0xffff, version: '', endFirst: false}
  const isKeyed = board.flags & 2
  if (!data.length) found.problems.push('The file is empty.')
  else if (ascii(data, 0, 14) == 'manifest.json\0') bundle(data, board, found)
  else if (ascii(data, 0, 4) == 'OTAF') encoded(data, board, found)
  else if (data[0] == 0xe9 && word(data, 32) == 0xabcd5432) app(data, 0, board, found, 'App image')
  else if (data[0] == 0xe9 || data[0] == 0xff) merged(data, board, found)
  else {
    const look = LOOKS.find(([start]) => ascii(data, 0, start.length) == start)
    found.problems.push('This is no firmware: it ' + (look ? 'looks like ' + look[1] :
      'starts with 0x' + hex(data.subarray(0, 1)) + ', an image with 0xe9') + '.')
  }
  if (found.kind) {
    found.rows.unshift(['Kind', found.kind])
    found.rows.push(['Signature', found.isSigned ? 'signed' : 'none'])
    if (isKeyed && !(found.isSigned && (found.isBundle || board.flags & 4))) found.problems.push(
      found.isSigned ? 'This board takes signed bundles, not signed images.' :
        'It is not signed: this board takes only what its keys have signed.')
    found.endFirst = isKeyed && found.isSigned && !found.isBundle
  }
  if (!board.room) found.problems.push('This board has no slot for an update' +
    (board.why ? ': ' + board.why : '.'))
  return found
}

function checkRoom(size, board, found) {
  if (board.room && size > board.room) found.problems.push(
    `It needs ${sizeText(size)}, the slot ${board.next} of this board holds ${sizeText(board.room)}.`)
}

function checkChip(name, id, board, found) {
  found.rows.push(['For', name])
  if (board.chip != null && id != board.chip)
    found.problems.push(`It is for ${name}, this board is ${board.chip_name}.`)
}

// An app image at `start`; `kind`: what the whole file is.
function app(data, start, board, found, kind) {
  found.kind = kind
  found.chip = data[start + 12] | data[start + 13] << 8
  checkChip(chipText(found.chip), found.chip, board, found)
  let end = start + 24
  for (let n = data[start + 1]; n; n--) end += 8 + word(data, end + 4)
  end = start + (end - start + 16 & ~15)
  const body = end
  if (data[start + 23]) end += 32
  if (end > data.length) {
    found.problems.push('The file ends too early: a part of the app is missing.')
    return
  }
  if (end > body && hex(sha256(data.subarray(start, body))) != hex(data.subarray(body, end)))
    found.problems.push('The file is damaged: its SHA-256 is not the one that it carries.')
  const sector = start + up(end - start)
  found.isSigned = !start && data[sector] == 0xe7 && data.length >= sector + SECTOR
  const name = [textAt(data, start + 80, 32), textAt(data, start + 48, 32)].filter(Boolean).join(' ')
  const python = /MicroPython (v\d[\w.+-]{0,40})/.exec(
    new TextDecoder('latin1').decode(data.subarray(start, end)))
  if (name) found.rows.push(['App', name])
  if (python) found.rows.push(['MicroPython', python[1]])
  found.version = textAt(data, start + 48, 32) || (python ? python[1] : '')
  found.rows.push(['Size', sizeText(end - start)])
  checkRoom(start ? end - start : data.length, board, found)
}

// Bootloader, partition table and app in one file; or a dump of the flash.
function merged(data, board, found) {
  let first = 0
  while (first < data.length && data[first] == 0xff) first += SECTOR
  if (data[first] != 0xe9) {
    found.problems.push('This is no firmware: it starts blank, and no bootloader follows.')
    return
  }
  const chip = data[first + 12] | data[first + 13] << 8
  const base = Math.max((BOOTLOADER[chip] || 0) - first, 0)
  for (let at = first + SECTOR; at < Math.min(data.length, 1 << 20); at += SECTOR) {
    const apps = {}
    for (let e = at; data[e] == 0xaa && data[e + 1] == 0x50; e += 32)
      if (data[e + 2] == 0) apps[data[e + 3]] = word(data, e + 4)
    const offset = apps[0] || apps[16]
    if (!offset) continue
    const start = offset - base
    if (data[start] == 0xe9) app(data, start, board, found, 'Merged firmware: its app is taken')
    else found.problems.push('The file ends before its app begins.')
    return
  }
  found.problems.push('It is a bootloader without an app: take the app image or the merged firmware.')
}

// Compressed, or a difference to what runs.
function encoded(data, board, found) {
  found.kind = data[5] == 2 ? 'Delta: to what runs now' : 'Compressed image'
  found.rows.push(['Size', sizeText(data.length) + ', ' + sizeText(word(data, 8)) + ' unpacked'])
  checkRoom(word(data, 8), board, found)
}

function bundle(data, board, found) {
  const members = {}
  let at = 0, manifest
  while (data[at]) {
    const size = parseInt(ascii(data, at + 124, at + 135), 8) || 0
    members[textAt(data, at, 100)] = data.subarray(at + 512, at + 512 + size)
    at += 512 + Math.ceil(size / 512) * 512
  }
  if (at + 512 > data.length) found.problems.push('The file ends too early: it is not whole.')
  try {
    manifest = JSON.parse(new TextDecoder().decode(members['manifest.json']))
  } catch {
    found.problems.push('The bundle is damaged: its manifest cannot be read.')
    return
  }
  found.kind = 'Release'
  found.isBundle = true
  found.isSigned = 'manifest.sig' in members
  found.version = String(manifest.version)
  found.rows.push(['Release', manifest.name + ' ' + manifest.version])
  if (manifest.chip) {
    const id = Object.keys(CHIPS).find(n => CHIPS[n].toLowerCase().replace('-', '') == manifest.chip)
    if (id) found.chip = +id
    checkChip(id ? CHIPS[id] : manifest.chip, id, board, found)
  }
  found.rows.push(['Size', sizeText(data.length)])
  for (const payload of manifest.payloads || [])
    if (payload.kind == 'app') checkRoom(payload.size, board, found)
}
