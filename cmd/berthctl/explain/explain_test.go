package explain

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/test/golden"
)

// stuckPod has a start that went well, and a stop that hangs.
func stuckPod() (*admin.ExplainResponse, time.Time) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ms := func(n int64) int64 { return n * int64(time.Millisecond) }
	work := func(depth uint32, kind, name, object string, began, took int64) *admin.Work {
		return &admin.Work{Depth: depth, Kind: kind, Name: name, Object: object, Began: at.UnixNano() + ms(began), Took: ms(took)}
	}
	id, c := strings.Repeat("a1", 32), strings.Repeat("c2", 32)
	p := &admin.PodTimeline{Id: id, Name: "web", Namespace: "shop", Dropped: 3, Work: []*admin.Work{
		work(0, "call", "RunPodSandbox", "", 0, 40),
		work(1, "verb", "sandbox.run", id, 1, 38),
		work(2, "step", "journal", "", 1, 3),
		work(2, "step", "network", "", 5, 30),
		work(3, "cni", "ADD bridge", "", 6, 28),
		work(0, "call", "StartContainer", c, 1000, 2100),
		work(1, "verb", "container.start", c, 1001, 2098),
		work(2, "shim", "start", c, 1001, 2090),
		work(0, "call", "StopPodSandbox", "", 60_000, 30_000),
		work(1, "verb", "container.stop", c, 60_001, 29_999),
		work(2, "step", "ask", "", 60_002, 29_998),
	}}
	p.Work[7].Error = "runc: <b>no such file</b>"
	for _, w := range p.Work[8:] {
		w.Running = true
	}
	p.Unfinished = []*admin.Operation{{Kind: "sandbox.stop", Subject: id, StartedAt: at.UnixNano()}}
	p.Processes = []*admin.Process{{Pid: 77, Name: "nginx", Role: "container", State: "D", Stack: []string{"rpc_wait_bit_killable", "nfs4_proc_getattr"}}}
	return &admin.ExplainResponse{Pods: []*admin.PodTimeline{p}}, at.Add(90 * time.Second)
}

func TestWaterfall(t *testing.T) {
	r, now := stuckPod()
	var b bytes.Buffer
	if err := printWaterfall(&b, r.GetPods()[0], now); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "explain.txt", b.String())
	b.Reset()
	a := &cli.App{Output: "table"}
	if err := a.Show(&b, nil, cli.Table{Header: "ID NAMESPACE NAME LAST TOOK STATE", Rows: explainedRows(a, r, now)}); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "explain-list.txt", b.String())
}

func TestExplainPage(t *testing.T) {
	r, now := stuckPod()
	page := explainPage(r, now)
	golden.Compare(t, "explain.html", page)
	if strings.Contains(page, "<b>no such file</b>") {
		t.Error("text of an error is taken for markup")
	}
	for _, bad := range []string{"http:", "https:", "<script", "src=", "<link", "url("} {
		if strings.Contains(page, bad) {
			t.Errorf("the page reaches outside: %s", bad)
		}
	}
}

// A browser lays the page out: each bar has its place.
func TestExplainPageInBrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed (apt-get install chromium)")
	}
	r, now := stuckPod()
	dir := t.TempDir()
	file := filepath.Join(dir, "page.html")
	// The measuring script is the test's; the page itself forbids any.
	page := strings.Replace(explainPage(r, now), `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">`, "", 1)
	page = strings.Replace(page, "</body>", `<script>
const tracks = [...document.querySelectorAll('.track')].map(t => t.getBoundingClientRect());
const bars = [...document.querySelectorAll('.bar')].map(b => b.getBoundingClientRect());
const inside = bars.every((b, i) => b.width > 0 && b.height > 4 && b.left >= tracks[i].left - 1 && b.right <= tracks[i].right + 1);
document.title = 'bars ' + bars.length + ' inside ' + inside + ' first ' + (bars[0].width === tracks[0].width) + ' network ' + Math.round(100 * (bars[3].left - tracks[3].left) / tracks[3].width);
</script></body>`, 1)
	if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir="+filepath.Join(dir, "profile"),
		"--virtual-time-budget=2000", "--dump-dom", "file://"+file)
	cmd.Env = append(os.Environ(), "HOME="+dir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	if want := "<title>bars 11 inside true first true network 13</title>"; !strings.Contains(string(out), want) {
		from := strings.Index(string(out), "<title>")
		t.Errorf("got %.200s\nwant %s", string(out)[max(0, from):], want)
	}
}
