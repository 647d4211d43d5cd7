package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	const pass, begin, end = "--- PASS: TestA (0.10s)", "BERTH-VM begin p", "BERTH-VM end p 0"
	for _, c := range []struct {
		name, said string
		want       []string
		end        string
	}{
		{"all well", begin + "\n=== RUN TestA\n" + pass + "\n    --- SKIP: TestA/b (0.00s)\n" + end + "\nBERTH-VM done", []string{"PASS  p  TestA  (0.10s)", "SKIP  p  TestA/b  (0.00s)"}, ""},
		{"one fails", begin + "\n" + pass + "\n--- FAIL: TestB (1.00s)\nBERTH-VM end p 1\nBERTH-VM done", []string{"PASS  p  TestA  (0.10s)", "FAIL  p  TestB  (1.00s)"}, "1 failed"},
		{"dies after its tests", begin + "\n" + pass + "\nleft behind\nBERTH-VM end p 1\nBERTH-VM done", []string{"PASS  p  TestA  (0.10s)", "FAIL  p  (ended with status 1)"}, "1 failed"},
		{"all skip", begin + "\n--- SKIP: TestA (0.00s)\n" + end + "\nBERTH-VM done", []string{"SKIP  p  TestA  (0.00s)", "FAIL  p  (nothing ran)"}, "1 failed"},
		{"power goes", begin + "\n" + pass, []string{"PASS  p  TestA  (0.10s)"}, "the machine ended during p"},
		{"never boots", "", nil, "the machine did not finish"},
		{"nothing to do", "BERTH-VM done", nil, "nothing ran"},
		{"commands", "BERTH-VM begin x\nBERTH-VM case x 0\nBERTH-VM end x 0\nBERTH-VM begin y\nBERTH-VM case y 3\nBERTH-VM end y 0\nBERTH-VM begin z\nBERTH-VM case z 2\nBERTH-VM end z 0\nBERTH-VM done",
			[]string{"PASS  x", "SKIP  y", "FAIL  z"}, "1 failed"},
		{"verdicts of nobody do not count", pass + "\nBERTH-VM done", nil, "nothing ran"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReport()
			var got []string
			for line := range strings.SplitSeq(c.said, "\n") {
				if v, _ := r.line(line); v != nil {
					got = append(got, v.String())
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if r.end() != c.end {
				t.Errorf("end: %q, want %q", r.end(), c.end)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	if all, err := choose(""); err != nil || len(all) != len(groups()) {
		t.Errorf("no name: %d groups, %v", len(all), err)
	}
	if one, err := choose("cgroup2"); err != nil || len(one) != 1 || one[0].name != "cgroup2" {
		t.Errorf("one name: %v, %v", one, err)
	}
	if _, err := choose("cgroup2,nothing"); err == nil {
		t.Error("an unknown name is no error")
	}
}
