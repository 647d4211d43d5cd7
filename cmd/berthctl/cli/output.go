package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Message is a message as JSON, with the CRI's field names, within a value.
type Message struct{ proto.Message }

// MarshalJSON implements json.Marshaler. The encoder around it gives the
// result its white space: protojson varies that on purpose.
func (m Message) MarshalJSON() ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m.Message)
}

// encode writes a value as indented JSON. Messages keep the CRI's field names.
func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if m, ok := v.(proto.Message); ok {
		v = Message{m}
	}
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return out.Bytes(), nil
}

// ShowDocument prints a message or value whole: as YAML if that is asked for,
// else as JSON.
func (a *App) ShowDocument(w io.Writer, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	if a.Output == "yaml" {
		if b, err = yamlOf(b); err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
	}
	_, err = w.Write(b)
	return err
}

// Show prints v as JSON or YAML, or the table.
func (a *App) Show(w io.Writer, v any, t Table) error {
	if a.Structured() {
		return a.ShowDocument(w, v)
	}
	_, err := io.WriteString(w, t.text(a.Wide(), Coloured(w)))
	return err
}

// ID cuts an ID to what tells it apart, unless output is wide.
func (a *App) ID(id string) string {
	if a.Wide() {
		return id
	}
	return Short(id)
}

// Short returns the first characters of an ID.
func Short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(13, len(id))]
}

// Age says how long ago a Unix time in nanoseconds was.
func Age(ns int64, now time.Time) string {
	d := now.Sub(time.Unix(0, ns))
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// Bytes writes a size with a binary unit.
func Bytes(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

// Branch is what stands before the i-th of n children in a tree.
func Branch(i, n int) string {
	if i == n-1 {
		return "└─ "
	}
	return "├─ "
}
