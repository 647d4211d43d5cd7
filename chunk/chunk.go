// Package chunk cuts lists into the messages of a stream, so that a list of
// any length takes the memory of one message.
package chunk

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// Items is how many objects one message carries at most.
const Items = 256

// Bytes is how large the objects of one message are together, unless one alone
// is larger. It is a quarter of what gRPC's clients take when nobody tells them
// otherwise; the annotations of a single pod may have 256 KiB.
const Bytes = 1 << 20

// Send sends all items, in their order, in parts; nothing for none. It takes
// the next item only when the part before has been sent, and stops at the
// first error of send, which it returns.
func Send[T proto.Message](all iter.Seq[T], send func([]T) error) error {
	var part []T
	size := 0
	for item := range all {
		n := proto.Size(item)
		if len(part) == Items || len(part) > 0 && size+n > Bytes {
			if err := send(part); err != nil {
				return err
			}
			part, size = nil, 0
		}
		part, size = append(part, item), size+n
	}
	if len(part) == 0 {
		return nil
	}
	return send(part)
}
