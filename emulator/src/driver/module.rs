//! Modules and their functions.

use super::{
    Code, Function, INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, NOT_FOUND, OUT_OF_MEMORY, SUCCESS, complain, give, guarded, state,
};
use crate::machine::{SHARED_BYTES, THREADS};
use crate::{isa, memory, ptx};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Shared memory of a launch that no attribute has raised.
const SHARED_DEFAULT: u32 = 48 << 10;

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(to: *mut u64, image: *const c_char) -> Code {
    if image.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the driver's contract: a text that ends with a NUL.
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
    guarded(|| load(to, &text))
}

fn load(to: *mut u64, text: &str) -> Code {
    let module = match ptx::module(text) {
        Ok(module) => module,
        Err(error) => return complain(INVALID_PTX, &error),
    };
    let mut tables = Vec::new();
    for table in &module.tables {
        let Some(at) = memory::allocate(table.len()) else { return OUT_OF_MEMORY };
        if let Err(error) = memory::write(at, table) {
            return complain(OUT_OF_MEMORY, &error);
        }
        tables.push(at);
    }
    let mut state = state();
    let mut functions = HashMap::new();
    for entry in &module.entries {
        let mut kernel = isa::kernel(entry, &tables);
        if let Some((_, line)) = super::left_out().filter(|(name, _)| *name == entry.name)
            && !kernel.leave_out(line)
        {
            eprintln!("emulator: {} has nothing in line {line}", entry.name);
        }
        let handle = state.handle();
        state.functions.insert(handle, Arc::new(Function { kernel, shared_bytes: SHARED_DEFAULT.into() }));
        functions.insert(entry.name.clone(), handle);
    }
    let handle = state.handle();
    state.modules.insert(handle, (functions, tables));
    give!(to, handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(to: *mut u64, image: *const c_char, _: c_uint, _: *mut c_void, _: *mut c_void) -> Code {
    cuModuleLoadData(to, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> Code {
    let mut state = state();
    let Some((functions, tables)) = state.modules.remove(&module) else { return INVALID_HANDLE };
    for handle in functions.values() {
        state.functions.remove(handle);
    }
    for at in tables {
        memory::free(at);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(to: *mut u64, module: u64, name: *const c_char) -> Code {
    if name.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the driver's contract: a name that ends with a NUL.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let state = state();
    let Some((functions, _)) = state.modules.get(&module) else { return INVALID_HANDLE };
    match functions.get(&*name) {
        Some(handle) => give!(to, *handle),
        None => NOT_FOUND,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) -> Code {
    let state = state();
    let Some(function) = state.functions.get(&function) else { return INVALID_HANDLE };
    // The largest dynamic shared memory; others change nothing here.
    if attribute == 8 {
        match u32::try_from(value).ok().filter(|bytes| *bytes <= SHARED_BYTES) {
            Some(bytes) => function.shared_bytes.store(bytes, Ordering::Relaxed),
            None => return INVALID_VALUE,
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(to: *mut c_int, attribute: c_int, function: u64) -> Code {
    let state = state();
    let Some(function) = state.functions.get(&function) else { return INVALID_HANDLE };
    let value = match attribute {
        0 => function.kernel.max_threads.unwrap_or(THREADS) as c_int,
        // Registers of a thread: no compiler has counted them. Any number that a block of the largest size could have.
        4 => 64,
        8 => function.shared_bytes.load(Ordering::Relaxed) as c_int,
        _ => 0,
    };
    give!(to, value)
}
