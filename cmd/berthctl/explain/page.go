package explain

import (
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/berth-dev/berth/cri/admin"
)

// pageRow is one bar of the page.
type pageRow struct {
	Indent      int
	Name, Took  string
	From, Width string // percent
	Class       string
	Error       string
}

type pageCall struct {
	At   string
	Rows []pageRow
}

type pagePod struct {
	Title, ID string
	Calls     []pageCall
	Waiting   string
}

// explainPage is one page without anything from elsewhere. Names and errors
// come from users; the template escapes them.
func explainPage(r *admin.ExplainResponse, now time.Time) string {
	var pods []pagePod
	for _, p := range r.GetPods() {
		o := pagePod{Title: p.GetNamespace() + "/" + p.GetName(), ID: p.GetId()}
		for _, call := range calls(p) {
			c := pageCall{At: time.Unix(0, call[0].GetBegan()).UTC().Format("2006-01-02 15:04:05.000 UTC")}
			for _, s := range call {
				from, width := share(call[0], s)
				class := s.GetKind()
				if s.GetRunning() {
					class += " running"
				}
				if s.GetError() != "" {
					class += " failed"
				}
				c.Rows = append(c.Rows, pageRow{Indent: int(s.GetDepth()), Name: label(s), Took: took(s.GetTook()), Class: class, Error: s.GetError(),
					From: fmt.Sprintf("%.3f", from*100), Width: fmt.Sprintf("%.3f", max(width*100, 0.3))})
			}
			o.Calls = append(o.Calls, c)
		}
		var waiting strings.Builder
		printWaiting(&waiting, p, now)
		o.Waiting = strings.TrimSpace(waiting.String())
		pods = append(pods, o)
	}
	var b strings.Builder
	err := template.Must(template.New("page").Parse(pageTemplate)).Execute(&b, map[string]any{"Pods": pods, "At": now.UTC().Format(time.RFC3339)})
	if err != nil {
		panic(err) // the template is a constant and a Builder takes everything
	}
	return b.String()
}

const pageTemplate = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>berthctl explain</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; max-width: 80em }
h1 { font-size: 1.3em } h2 { font-size: 1em; margin: 1.5em 0 .3em; font-weight: 600 } .id { color: #777; font-weight: 400; font-size: .8em }
.row { display: grid; grid-template-columns: 24em 6em 1fr; gap: .8em; align-items: center; border-bottom: 1px solid #eee }
.name { white-space: nowrap; overflow: hidden; text-overflow: ellipsis } .took { text-align: right; font-variant-numeric: tabular-nums }
.track { position: relative; height: 1em; background: #f6f6f6 }
.bar { position: absolute; top: .1em; bottom: .1em; background: #8aa9c9; border-radius: 2px }
.call .bar { background: #44546a } .verb .bar { background: #5b7fa6 } .wait .bar { background: #d9b44a } .cni .bar { background: #6aa384 }
.shim .bar { background: #a386b8 } .registry .bar { background: #c28b62 } .undo .bar, .failed .bar { background: #c0504d }
.running .bar { background: repeating-linear-gradient(45deg, #d98b2b, #d98b2b 4px, #f0c080 4px, #f0c080 8px) }
.error { grid-column: 1 / -1; color: #a02622; font-size: .9em; padding-left: 2em; overflow-wrap: anywhere }
pre { background: #fdf6e3; padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere }
</style></head><body>
{{range .Pods}}<section class="pod"><h1>Pod {{.Title}} <span class="id">{{.ID}}</span></h1>
{{if .Waiting}}<pre class="waiting">{{.Waiting}}</pre>{{end}}
{{range .Calls}}<h2>{{.At}}</h2>
{{range .Rows}}<div class="row {{.Class}}"><div class="name" title="{{.Name}}" style="padding-left: {{.Indent}}em">{{.Name}}</div><div class="took">{{.Took}}</div>
<div class="track"><div class="bar" style="left: {{.From}}%; width: {{.Width}}%"></div></div>{{if .Error}}<div class="error">{{.Error}}</div>{{end}}</div>
{{end}}{{end}}</section>{{else}}<p>Nothing is remembered of any pod.</p>{{end}}
<footer class="id">Written by berthctl explain at {{.At}}.</footer></body></html>
`
