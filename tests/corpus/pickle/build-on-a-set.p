€cbuiltins
set
)R}UaNsb.