package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/containerd/errdefs"
)

// A record on disk is an envelope:
//
//	byte 0      record version, recordV1
//	bytes 1-4   CRC-32C of everything after them, big endian
//	uvarint     length of the blob plus one; 0: there is no blob
//	blob        bytes kept as they came: a CRI config, an image config, a payload
//	facts       JSON, up to the end
//
// The key of the record is the object's ID. The facts repeat it, because no
// checksum is over the key; those of records that an earlier Berth wrote do not.
const (
	recordV1   = 1
	headerSize = 5
)

// envelope is the decoded outer layer of a record.
type envelope struct {
	blob  []byte // nil: none
	facts []byte
}

func seal(e envelope) []byte {
	out := make([]byte, headerSize, headerSize+binary.MaxVarintLen64+len(e.blob)+len(e.facts))
	out[0] = recordV1
	if e.blob == nil {
		out = append(out, 0)
	} else {
		out = binary.AppendUvarint(out, uint64(len(e.blob))+1)
		out = append(out, e.blob...)
	}
	out = append(out, e.facts...)
	binary.BigEndian.PutUint32(out[1:headerSize], checksum(out[headerSize:]))
	return out
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// unseal copies what it returns: bytes of the database's memory map must not
// outlive the transaction.
func unseal(data []byte) (envelope, error) {
	if len(data) < headerSize {
		return envelope{}, fmt.Errorf("record of %d bytes is too short: %w", len(data), errdefs.ErrDataLoss)
	}
	if data[0] != recordV1 {
		return envelope{}, fmt.Errorf("record version %d is unknown: %w", data[0], errdefs.ErrDataLoss)
	}
	body := data[headerSize:]
	if got, want := checksum(body), binary.BigEndian.Uint32(data[1:headerSize]); got != want {
		return envelope{}, fmt.Errorf("record checksum is %08x, expected %08x: %w", got, want, errdefs.ErrDataLoss)
	}
	size, n := binary.Uvarint(body)
	if n <= 0 || (size > 0 && size-1 > uint64(len(body)-n)) {
		return envelope{}, fmt.Errorf("record is cut short: %w", errdefs.ErrDataLoss)
	}
	body = body[n:]
	if size == 0 {
		return envelope{facts: append([]byte(nil), body...)}, nil
	}
	return envelope{
		blob:  append([]byte{}, body[:size-1]...),
		facts: append([]byte(nil), body[size-1:]...),
	}, nil
}

// codec turns one kind of object into records and back.
type codec[T any] struct {
	kind   string // as a user reads it: "sandbox"
	bucket string
	id     func(T) string
	encode func(T) ([]byte, error)
	decode func(id string, data []byte) (T, error)
}

// sealWith encodes the facts and wraps them together with the blob.
func sealWith(blob []byte, facts any) ([]byte, error) {
	b, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	return seal(envelope{blob: blob, facts: b}), nil
}

// openInto unwraps a record and decodes its facts; the blob is the caller's.
func openInto(data []byte, facts any) ([]byte, error) {
	e, err := unseal(data)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(e.facts, facts); err != nil {
		return nil, errors.Join(fmt.Errorf("decode facts: %w", err), errdefs.ErrDataLoss)
	}
	return e.blob, nil
}

// errMisplaced is of a record that lies under another's key.
var errMisplaced = errors.New("its key is damaged")

// underKey says whether a record, by the ID in it, belongs under that key.
func underKey(own, key string) error {
	if own != "" && own != key {
		return fmt.Errorf("record of %q lies under %q: %w", own, key, errMisplaced)
	}
	return nil
}

// intact says whether a record is whole and lies under its own key.
func intact(key string, data []byte) bool {
	var own struct{ ID, ChainID string }
	_, err := openInto(data, &own)
	return err == nil && underKey(own.ID+own.ChainID, key) == nil
}

func sandboxCodec() codec[Sandbox] {
	return codec[Sandbox]{
		kind: "sandbox", bucket: bucketSandboxes,
		id: func(s Sandbox) string { return s.ID },
		encode: func(s Sandbox) ([]byte, error) {
			config, err := encodeProto(s.Config)
			if err != nil {
				return nil, err
			}
			return sealWith(config, sandboxJSON{ID: s.ID, Handler: s.Handler, Facts: s.Facts})
		},
		decode: func(id string, data []byte) (Sandbox, error) {
			var j sandboxJSON
			blob, err := openInto(data, &j)
			if err = errors.Join(err, underKey(j.ID, id)); err != nil {
				return Sandbox{}, err
			}
			config, err := decodeSandboxConfig(blob)
			if err != nil {
				return Sandbox{}, fmt.Errorf("decode config: %w", err)
			}
			return Sandbox{ID: id, Handler: j.Handler, Config: config, Facts: j.Facts}, nil
		},
	}
}

func containerCodec() codec[Container] {
	return codec[Container]{
		kind: "container", bucket: bucketContainers,
		id: func(c Container) string { return c.ID },
		encode: func(c Container) ([]byte, error) {
			config, err := encodeProto(c.Config)
			if err != nil {
				return nil, err
			}
			return sealWith(config, containerJSON{ID: c.ID, SandboxID: c.SandboxID, Facts: c.Facts})
		},
		decode: func(id string, data []byte) (Container, error) {
			var j containerJSON
			blob, err := openInto(data, &j)
			if err = errors.Join(err, underKey(j.ID, id)); err != nil {
				return Container{}, err
			}
			config, err := decodeContainerConfig(blob)
			if err != nil {
				return Container{}, fmt.Errorf("decode config: %w", err)
			}
			return Container{ID: id, SandboxID: j.SandboxID, Config: config, Facts: j.Facts}, nil
		},
	}
}

func imageCodec() codec[Image] {
	return codec[Image]{
		kind: "image", bucket: bucketImages,
		id: func(i Image) string { return i.ID },
		encode: func(i Image) ([]byte, error) {
			config := i.Config
			i.Config = nil
			return sealWith(config, i)
		},
		decode: func(id string, data []byte) (Image, error) {
			var i Image
			blob, err := openInto(data, &i)
			err = errors.Join(err, underKey(i.ID, id))
			i.ID, i.Config = id, blob
			return i, err
		},
	}
}

func layerCodec() codec[Layer] {
	return codec[Layer]{
		kind: "layer", bucket: bucketLayers,
		id:     func(l Layer) string { return l.ChainID },
		encode: func(l Layer) ([]byte, error) { return sealWith(nil, l) },
		decode: func(id string, data []byte) (Layer, error) {
			var l Layer
			_, err := openInto(data, &l)
			err = errors.Join(err, underKey(l.ChainID, id))
			l.ChainID = id
			return l, err
		},
	}
}

func opCodec() codec[Op] {
	return codec[Op]{
		kind: "op", bucket: bucketOps,
		id: func(o Op) string { return o.ID },
		encode: func(o Op) ([]byte, error) {
			payload := o.Payload
			o.Payload = nil
			return sealWith(payload, o)
		},
		decode: func(id string, data []byte) (Op, error) {
			var o Op
			blob, err := openInto(data, &o)
			err = errors.Join(err, underKey(o.ID, id))
			o.ID, o.Payload = id, blob
			return o, err
		},
	}
}
