//! Where things lie in the running kernel: field offsets and enum values out of its own BTF.
//!
//! Invariant: nothing is guessed. A field that the kernel does not have is an error, and the caller
//! decides which programs to do without.

use btf_rs::{BtfType, Type};

const PATH: &str = "/sys/kernel/btf/vmlinux";

/// Nested anonymous structs and typedefs followed at most this deep.
const DEPTH_MAX: usize = 16;

/// The running kernel's types. Parsing them takes about 0.1 s: load once, look up often, drop.
pub struct Btf(btf_rs::Btf);

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("{PATH} cannot be read: the kernel needs CONFIG_DEBUG_INFO_BTF")]
    Unreadable(#[source] btf_rs::Error),
    #[error("the kernel's BTF has no {kind} `{name}`")]
    Missing { kind: &'static str, name: String },
}

impl Btf {
    pub fn load() -> Result<Self, BtfError> {
        btf_rs::Btf::from_file(PATH)
            .map(Self)
            .map_err(BtfError::Unreadable)
    }

    /// Byte offset of a field, e.g. `offset("inode", "i_sb")`. A path with dots walks embedded
    /// structs (not pointers); members of anonymous structs and unions are named directly.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing {
            kind: "field",
            name: format!("{structure}.{path}"),
        };
        let mut within = self.structure(structure).ok_or_else(missing)?;
        let mut bits = 0;
        for field in path.split('.') {
            let (at, next) = self.field(&within, field, DEPTH_MAX).ok_or_else(missing)?;
            bits += at;
            within = next;
        }
        Ok(bits / 8)
    }

    /// Size of a struct or union in bytes.
    pub fn size(&self, structure: &str) -> Result<usize, BtfError> {
        match self.structure(structure) {
            Some(Type::Struct(found) | Type::Union(found)) => Ok(found.size()),
            _ => Err(BtfError::Missing {
                kind: "struct",
                name: structure.to_owned(),
            }),
        }
    }

    /// Value of an enum's member, e.g. `enum_value("pageflags", "PG_head")`.
    pub fn enum_value(&self, name: &str, member: &str) -> Result<u64, BtfError> {
        let named = |entry: &dyn BtfType| self.0.resolve_name(entry).is_ok_and(|found| found == member);
        self.named(name)
            .find_map(|found| match found {
                Type::Enum(values) => {
                    let value = values.members.iter().find(|entry| named(*entry))?;
                    Some(u64::from(value.val()))
                }
                Type::Enum64(values) => Some(values.members.iter().find(|entry| named(*entry))?.val()),
                _ => None,
            })
            .ok_or_else(|| BtfError::Missing {
                kind: "enum member",
                name: format!("{name}.{member}"),
            })
    }

    /// Value of a member of an enum that has no name, e.g. `constant("EXTENT_LOCKED")`.
    pub fn constant(&self, member: &str) -> Result<u32, BtfError> {
        let named = |entry: &dyn BtfType| self.0.resolve_name(entry).unwrap_or_default();
        (1..)
            .map_while(|id| self.0.resolve_type_by_id(id).ok())
            .find_map(|found| match found {
                Type::Enum(values) if named(&values).is_empty() => {
                    Some(values.members.iter().find(|entry| named(*entry) == member)?.val())
                }
                _ => None,
            })
            .ok_or_else(|| BtfError::Missing {
                kind: "constant",
                name: member.to_owned(),
            })
    }

    /// Number of arguments that a tracepoint passes to a `tp_btf` program.
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Result<usize, BtfError> {
        self.named(&format!("btf_trace_{tracepoint}"))
            .find_map(|found| match self.plain(found, DEPTH_MAX)? {
                Type::FuncProto(proto) => Some(proto.parameters.len().saturating_sub(1)),
                _ => None,
            })
            .ok_or_else(|| BtfError::Missing {
                kind: "tracepoint",
                name: tracepoint.to_owned(),
            })
    }

    /// Checks that a tracepoint exists and that its arguments point to these structs; `""` is not looked at.
    /// Argument lists change between kernels, and a program would read the wrong thing.
    pub fn check_tracepoint(&self, tracepoint: &str, arguments: &[&str]) -> Result<(), BtfError> {
        let missing = |name: String| BtfError::Missing {
            kind: "tracepoint",
            name,
        };
        let proto = self
            .named(&format!("btf_trace_{tracepoint}"))
            .filter_map(|found| self.plain(found, DEPTH_MAX))
            .find_map(|found| match found {
                Type::FuncProto(proto) => Some(proto),
                _ => None,
            })
            .ok_or_else(|| missing(tracepoint.to_owned()))?;
        for (n, wanted) in arguments
            .iter()
            .enumerate()
            .filter(|(_, wanted)| !wanted.is_empty())
        {
            // The first parameter is the tracepoint's own.
            let pointee = proto.parameters.get(n + 1).and_then(|found| self.pointee(found));
            if pointee.as_deref() != Some(wanted) {
                return Err(missing(format!("{tracepoint} with a {wanted} as argument {n}")));
            }
        }
        Ok(())
    }

    /// Name of the struct that a parameter points to.
    fn pointee(&self, parameter: &dyn BtfType) -> Option<String> {
        let Type::Ptr(pointer) = self.plain(self.0.resolve_chained_type(parameter).ok()?, DEPTH_MAX)? else {
            return None;
        };
        match self.plain(self.0.resolve_chained_type(&pointer).ok()?, DEPTH_MAX)? {
            Type::Struct(found) => self.0.resolve_name(&found).ok(),
            _ => None,
        }
    }

    fn named(&self, name: &str) -> impl Iterator<Item = Type> {
        self.0.resolve_types_by_name(name).unwrap_or_default().into_iter()
    }

    fn structure(&self, name: &str) -> Option<Type> {
        self.named(name)
            .find(|found| matches!(found, Type::Struct(_) | Type::Union(_)))
    }

    /// Strips typedefs, qualifiers and the pointer of a tracepoint's typedef.
    fn plain(&self, mut found: Type, depth: usize) -> Option<Type> {
        for _ in 0..depth {
            found = match &found {
                Type::Typedef(inner) => self.0.resolve_chained_type(inner).ok()?,
                Type::Const(inner) | Type::Volatile(inner) | Type::Restrict(inner) => {
                    self.0.resolve_chained_type(inner).ok()?
                }
                Type::TypeTag(inner) => self.0.resolve_chained_type(inner).ok()?,
                Type::Ptr(inner) => match self.0.resolve_chained_type(inner).ok()? {
                    proto @ Type::FuncProto(_) => proto,
                    _ => return Some(found),
                },
                _ => return Some(found),
            };
        }
        None
    }

    /// Bit offset and type of a field, looking through anonymous members.
    fn field(&self, within: &Type, name: &str, depth: usize) -> Option<(u32, Type)> {
        let (Type::Struct(within) | Type::Union(within)) = within else {
            return None;
        };
        for member in &within.members {
            let found = self.0.resolve_name(member).unwrap_or_default();
            if !found.is_empty() && found != name {
                continue;
            }
            let inner = self.plain(self.0.resolve_chained_type(member).ok()?, DEPTH_MAX)?;
            if found == name {
                return Some((member.bit_offset(), inner));
            }
            if depth > 0
                && let Some((bits, inner)) = self.field(&inner, name, depth - 1)
            {
                return Some((member.bit_offset() + bits, inner));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_enums_and_tracepoints_are_found_in_the_running_kernel() {
        let btf = match Btf::load() {
            Ok(btf) => btf,
            Err(error) => return println!("skipped: {error}"),
        };
        assert_eq!(btf.offset("list_head", "prev").unwrap(), 8);
        let direct = btf.offset("inode", "i_ino").unwrap();
        assert!(direct > 0 && (direct as usize) < btf.size("inode").unwrap());
        assert_eq!(
            btf.offset("task_struct", "se.vruntime").unwrap(),
            btf.offset("task_struct", "se").unwrap() + btf.offset("sched_entity", "vruntime").unwrap()
        );
        // `page.mapping` sits in an anonymous struct in an anonymous union.
        assert!(btf.offset("page", "mapping").unwrap() > 0);
        assert!(btf.enum_value("pageflags", "PG_head").unwrap() < 64);
        assert_eq!(btf.tracepoint_arguments("writeback_dirty_folio").unwrap(), 2);
        assert!(
            btf.check_tracepoint("sched_switch", &["", "task_struct", "task_struct"])
                .is_ok()
        );
        assert!(btf.check_tracepoint("sched_switch", &["task_struct"]).is_err());
        assert!(btf.constant("NR_FREE_PAGES").is_err(), "of an enum with a name");
        assert!(btf.constant("BPF_F_CURRENT_CPU").is_ok() || btf.constant("IO_TREE_INODE_IO").is_ok());
        assert!(btf.offset("inode", "no_such_field").is_err());
        assert!(btf.tracepoint_arguments("no_such_tracepoint").is_err());
    }
}
