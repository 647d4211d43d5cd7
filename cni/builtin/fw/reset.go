package fw

import (
	"slices"

	"github.com/google/nftables"
)

// podTable is one of the tables that only pods fill, with the chains that hold
// their rules.
type podTable struct {
	*nftables.Table
	chains []string
}

func podTables() []podTable {
	masq, _, checks := masqTable()
	ports := []string{"hostports", "hostip_hostports", "masquerading"}
	return []podTable{{masq, []string{checks.Name}}, {portTableOf(true).Table, ports}, {portTableOf(false).Table, ports}}
}

func (t podTable) name() string {
	return map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet ", nftables.TableFamilyIPv4: "ip ", nftables.TableFamilyIPv6: "ip6 "}[t.Family] + t.Name
}

// Tables lists which of the tables for masquerading and host ports there are.
func (r *Rules) Tables() (names []string, err error) {
	err = r.do("list tables", func(conn *connection) error {
		all, err := steady(conn, conn.ListTables)
		if err != nil {
			return err
		}
		for _, t := range podTables() {
			if slices.ContainsFunc(all, func(o *nftables.Table) bool { return o.Name == t.Name && o.Family == t.Family }) {
				names = append(names, t.name())
			}
		}
		return nil
	})
	return names, err
}

// DropTables deletes those of the named tables that hold no pod's rules, and
// tells which.
func (r *Rules) DropTables(names []string) (dropped []string, err error) {
	err = r.do("delete tables", func(conn *connection) error {
		dropped = nil
		for _, t := range podTables() {
			if !slices.Contains(names, t.name()) {
				continue
			}
			used := false
			for _, chain := range t.chains {
				rules, err := rulesWhere(conn, &nftables.Chain{Table: t.Table, Name: chain}, func([]byte) bool { return true })
				if err != nil {
					return err
				}
				used = used || len(rules) > 0
			}
			if !used {
				conn.DelTable(t.Table)
				dropped = append(dropped, t.name())
			}
		}
		return conn.Flush()
	})
	return dropped, err
}
