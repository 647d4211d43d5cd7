package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// printJSON writes a message with the CRI's field names, indented and stable.
func printJSON(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	var out bytes.Buffer // protojson varies its white space on purpose
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = fmt.Fprintln(w, out.String())
	return err
}

// show prints m as JSON, or the rows as a table under the header.
func (a *app) show(w io.Writer, m proto.Message, header string, rows [][]string) error {
	if a.output == "json" {
		return printJSON(w, m)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if header != "" {
		_, _ = fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	}
	for _, r := range rows {
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// short returns the first characters of an ID.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(13, len(id))]
}

// age says how long ago a Unix time in nanoseconds was.
func age(ns int64, now time.Time) string {
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

// bytesText writes a size with a binary unit.
func bytesText(n uint64) string {
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
