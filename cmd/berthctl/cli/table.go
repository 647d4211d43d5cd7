package cli

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Table is rows under a header.
type Table struct {
	Header string // names of the columns between blanks; "" for none
	Rows   [][]string
	Wide   int // so many columns, the last ones, are shown only with -o wide
}

// Plain is the table without colours.
func (t Table) Plain() string { return t.text(false, false) }

// text aligns the columns. Colours mark the header and states.
func (t Table) text(wide, coloured bool) string {
	rows := t.Rows
	header := strings.Fields(t.Header)
	if len(header) > 0 {
		rows = append([][]string{header}, rows...)
	}
	var widths []int
	lines := make([][]string, len(rows))
	for i, r := range rows {
		if !wide {
			r = r[:len(r)-min(t.Wide, len(r))]
		}
		for j, cell := range r {
			cell = Clean(cell)
			lines[i] = append(lines[i], cell)
			if j == len(widths) {
				widths = append(widths, 0)
			}
			widths[j] = max(widths[j], utf8.RuneCountInString(cell))
		}
	}
	var out strings.Builder
	for i, r := range lines {
		var line strings.Builder
		for j, cell := range r {
			pad := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)+2)
			switch {
			case coloured && i == 0 && len(header) > 0:
				cell = bold + cell + plain
			case coloured && j < len(header):
				cell = paint(header[j], cell)
			}
			line.WriteString(cell + pad)
		}
		out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return out.String()
}

// Clean replaces control characters: names and messages come from users, and a
// terminal obeys them.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// paint colours the cells of columns that say how something is.
func paint(column, cell string) string {
	if column != "STATE" && column != "STATUS" {
		return cell
	}
	word, _, _ := strings.Cut(cell, " ")
	if word != cell { // something is added: look at it
		return red + cell + plain
	}
	switch word {
	case "READY", "RUNNING", "true", "ok":
		return green + cell + plain
	case "NOTREADY", "EXITED", "CREATED":
		return yellow + cell + plain
	case "UNKNOWN", "false":
		return red + cell + plain
	}
	return cell
}
